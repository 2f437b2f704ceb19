"""PreActResNet-18: residual blocks whose norm and activation come before the convolution.

K. He, X. Zhang, S. Ren, J. Sun, "Identity Mappings in Deep Residual Networks", ECCV 2016
(arXiv 1603.05027), with the small stem that is usual for 32x32 images: one 3x3 convolution
of stride 1 and no pooling. ``width`` is the number of channels of the first stage; the four
stages have width, 2 width, 4 width and 8 width.

This is the model of the method's paper; the narrow one (``width=16``) trains on a CPU.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from pbe_fast.errors import ModelError

__all__ = ["PreActBlock", "PreActResNet18"]

_MAX_WIDTH = 4096  # far beyond use; keeps a mistyped width from asking for terabytes


class PreActBlock(nn.Module):
    """``y = shortcut + conv2(relu(bn2(conv1(relu(bn1(x))))))``; halves H and W at stride 2.

    The shortcut is x itself where the shape stays, else a 1x1 convolution of relu(bn1(x)).
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.shortcut: nn.Conv2d | None = None
        if stride != 1 or channels_in != channels_out:
            # Of stride 1, on every stride-th pixel: where there are fewer than 8 channels, oneDNN's
            # gradient of a 1x1 convolution with stride 2 writes beyond its memory (torch 2.15,
            # AVX2, channels_last).
            self.shortcut = nn.Conv2d(channels_in, channels_out, 1, bias=False)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C', H', W')."""
        activated = functional.relu(self.bn1(x))
        shortcut = x
        if self.shortcut is not None:
            shortcut = self.shortcut(activated[:, :, :: self.stride, :: self.stride])
        y = self.conv1(activated)
        y = self.conv2(functional.relu(self.bn2(y)))
        return y + shortcut  # type: ignore[no-any-return]  # nn.Module calls are untyped


class PreActResNet18(nn.Module):
    """PreActResNet-18 with a stem for small images.

    Args:
        num_classes: number of logits, K.
        width: channels of the first stage; 64 is the usual model (11.2 million weights),
            16 the narrow one (0.7 million).
        final_norm: whether a batch norm and a ReLU follow the last block, as in the paper. Some
            implementations, such as BackdoorBench's, pool the last block's output as it is.

    Raises:
        ModelError: a size is not a positive integer, the width is absurd, or ``final_norm`` is
            not true or false.
    """

    def __init__(self, num_classes: int, width: int = 64, final_norm: bool = True) -> None:
        super().__init__()
        if type(final_norm) is not bool:
            raise ModelError(f"final_norm is {final_norm!r}: give true or false.")
        if type(width) is not int or not 1 <= width <= _MAX_WIDTH:
            raise ModelError(f"width is {width!r}: give an integer from 1 to {_MAX_WIDTH}.")
        if type(num_classes) is not int or num_classes < 1:
            raise ModelError(f"num_classes is {num_classes!r}: give a positive integer.")
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.layer1 = _stage(width, width, stride=1)
        self.layer2 = _stage(width, 2 * width, stride=2)
        self.layer3 = _stage(2 * width, 4 * width, stride=2)
        self.layer4 = _stage(4 * width, 8 * width, stride=2)
        self.bn = nn.BatchNorm2d(8 * width) if final_norm else None
        self.linear = nn.Linear(8 * width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def features(self, x: Tensor) -> Tensor:
        """Penultimate features: (N, 3, H, W) normalised images to (N, 8 * width)."""
        x = self.conv1(x)  # (N, width, H, W)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))  # (N, 8 width, H/8, W/8)
        if self.bn is not None:
            x = functional.relu(self.bn(x))
        return torch.flatten(functional.adaptive_avg_pool2d(x, 1), 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits: (N, 3, H, W) normalised images to (N, K)."""
        return self.linear(self.features(x))  # type: ignore[no-any-return]  # untyped call


def _stage(channels_in: int, channels_out: int, stride: int) -> nn.Sequential:
    """Two blocks; the first one changes the shape."""
    return nn.Sequential(
        PreActBlock(channels_in, channels_out, stride),
        PreActBlock(channels_out, channels_out, 1),
    )
