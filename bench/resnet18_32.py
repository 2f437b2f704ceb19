"""ResNet-18 for 32x32 images: torchvision's, with the usual 3x3 stem of stride 1 and no pooling."""

from torch import nn
from torchvision.models import resnet18


def make(num_classes: int) -> nn.Module:
    """Called by the model name ``bench/resnet18_32.py:make``."""
    net = resnet18(num_classes=num_classes)
    net.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    net.maxpool = nn.Identity()
    return net
