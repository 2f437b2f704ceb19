"""PGD-7 images per second: this project against its peers, one process, one model, one batch.

    python -m bench.pgd runs/bench --threads 2
    python -m bench.pgd runs/bench --device cuda
    python -m bench.pgd runs/bench --checkpoint model.safetensors --data shards/test

All contenders attack the same trained model with the same images, which it gets right, eps 6/255,
step eps/5, 7 steps, no random start. The attack success rate is counted by the model itself in
float32. The peers run as their documentation has it, in float32; ``plain, bfloat16`` is a plain
loop with autocast and channels_last, to show what comes of these alone.

The arithmetic of *exact* and the rate of a large matrix product on the same threads are written
beside, as the limit that is hit.
"""

import argparse
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from bench._setup import MODELS, facts, interleaved, some, trained, write_json
from pbe_fast.adversary import PGD, Linf, Miner
from pbe_fast.data.loader import ImageData
from pbe_fast.device import Device, choose_device
from pbe_fast.models import Classifier, load_model

__all__ = ["contenders"]

EPS, STEPS = 6 / 255, 7
STEP = EPS / 5
MARGIN = 0.5  # of logits; what bfloat16 can take for a success and float32 not

Attack = Callable[[Tensor, Tensor], Tensor]


def plain(model: nn.Module, device: torch.device, bfloat16: bool = False) -> Attack:
    """A loop as the public PBE code has it, parameter gradients included; clamped to [0, 1]."""

    def attack(images: Tensor, labels: Tensor) -> Tensor:
        model.eval()
        adversarial = images.clone()
        if bfloat16:
            adversarial = adversarial.contiguous(memory_format=torch.channels_last)
        for _ in range(STEPS):
            adversarial = adversarial.detach().requires_grad_(True)
            with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
                logits = model(adversarial)
            functional.cross_entropy(logits.float(), labels).backward()  # type: ignore[no-untyped-call]  # torch's stub
            assert adversarial.grad is not None
            moved = adversarial.detach() + STEP * adversarial.grad.sign()
            adversarial = images + (moved - images).clamp(-EPS, EPS)
            adversarial = adversarial.clamp(0, 1)
        model.zero_grad(set_to_none=True)
        return adversarial

    return attack


def torchattacks(model: nn.Module) -> Attack:
    """torchattacks."""
    import torchattacks as library

    attack = library.PGD(model, eps=EPS, alpha=STEP, steps=STEPS, random_start=False)
    return lambda images, labels: attack(images, labels)  # type: ignore[no-any-return]  # untyped


def foolbox(model: nn.Module, device: torch.device) -> Attack:
    """Foolbox."""
    import foolbox as library

    wrapped = library.PyTorchModel(model, bounds=(0, 1), device=device)
    attack = library.attacks.LinfProjectedGradientDescentAttack(
        abs_stepsize=STEP, steps=STEPS, random_start=False
    )
    return lambda images, labels: attack(wrapped, images, labels, epsilons=EPS)[0]  # type: ignore[no-any-return]  # untyped


def toolbox(model: nn.Module, shape: torch.Size, classes: int, device: torch.device) -> Attack:
    """The Adversarial Robustness Toolbox."""
    from art.attacks.evasion import ProjectedGradientDescentPyTorch
    from art.estimators.classification import PyTorchClassifier

    wrapped = PyTorchClassifier(
        model,
        nn.CrossEntropyLoss(),
        input_shape=tuple(shape[1:]),
        nb_classes=classes,
        clip_values=(0.0, 1.0),
        device_type="gpu" if device.type == "cuda" else "cpu",
    )
    attack = ProjectedGradientDescentPyTorch(
        wrapped, eps=EPS, eps_step=STEP, max_iter=STEPS, batch_size=shape[0], verbose=False
    )

    def run(images: Tensor, labels: Tensor) -> Tensor:
        targets = np.eye(classes, dtype=np.float32)[labels.cpu().numpy()]
        return torch.from_numpy(attack.generate(images.cpu().numpy(), targets)).to(images)

    return run


def rule(mode: str) -> PGD:
    """This project's adversary with the numbers that all contenders have."""
    return PGD(norm=Linf(EPS), steps=STEPS, step=STEP, mode=mode, margin=MARGIN)  # type: ignore[arg-type]  # a table's text


def ours(model: nn.Module, device: Device, mode: str, slots: int) -> Attack:
    """This project's adversary."""
    miner = Miner(rule(mode), model, device, slots=slots)
    return lambda images, labels: miner(images, labels)


def contenders(
    model: nn.Module, place: torch.device, size: int, shape: torch.Size, classes: int, batch: int
) -> dict[str, Attack]:
    """All of them, by name, each with a model of its own, as they change modes and layouts.

    ``batch`` is the number of images a model pass.
    """
    probed = deepcopy(model)
    device = choose_device(str(place), "auto", probed, size)
    # Peers do not ask for deterministic algorithms; nobody has them here.
    torch.backends.cudnn.deterministic = False
    last = deepcopy(model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks this form
    return {
        "ours, exact": ours(probed, device, "exact", batch),
        "ours, retire": ours(probed, device, "retire", batch),
        "torchattacks": torchattacks(deepcopy(model)),
        "foolbox": foolbox(deepcopy(model), place),
        "ART": toolbox(deepcopy(model), shape, classes, place),
        "plain": plain(deepcopy(model), place),
        "plain, bfloat16": plain(last, place, bfloat16=True),
    }


def compare(
    model: Classifier, test: ImageData, place: torch.device, batch: int, batches: int, rounds: int
) -> dict[str, Any]:
    """Time all contenders on one model."""
    model.to(place).eval()
    pixels, labels, accuracy = _right(model, test, batch * batches, place)
    images = (pixels.float() / 255).contiguous()
    everyone = contenders(
        model, place, test.size, images[:batch].shape, test.manifest.num_classes, batch
    )
    calls = {}
    found: dict[str, Tensor] = {}
    for title, attack in everyone.items():
        clean = pixels if title.startswith("ours") else images
        # The pool of mode retire takes all at once and refills its batch.
        size = len(labels) if title == "ours, retire" else batch
        calls[title] = partial(_attack, found, title, attack, clean, labels, size)
        # Allocations, layouts, compiled code; one batch is enough where a batch takes seconds.
        first = len(labels) if place.type == "cuda" else batch
        attack(clean[:first], labels[:first])
    times = interleaved(calls, rounds, len(labels), warm_up=False)
    success = {title: _wrong(model, found[title], labels, batch) for title in calls}
    return {
        "model": f"{model.spec.name.rpartition('/')[2]} {dict(model.spec.options) or ''}".strip(),
        "accuracy": accuracy,
        "images": len(labels),
        "batch": batch,
        "arithmetic": _arithmetic(model, images[:batch]),
        "contenders": {
            title: {**times[title], "attack_success_rate": success[title]} for title in times
        },
    }


def _right(
    model: nn.Module, test: ImageData, count: int, place: torch.device
) -> tuple[Tensor, Tensor, float]:
    """Random test images that the model gets right, their labels, and the accuracy on all.

    What it gets wrong needs no attack, and would flatter who looks before the first step.
    """
    pixels, labels = some(test, min(len(test.manifest), 2 * count + 100))
    pixels, labels = pixels.to(place), labels.to(place)
    with torch.no_grad():
        found = torch.cat([model(x.float() / 255).argmax(1) for x in pixels.split(64)])
    right = (found == labels).nonzero()[:, 0]
    return pixels[right[:count]], labels[right[:count]], len(right) / len(labels)


def _arithmetic(model: nn.Module, images: Tensor) -> dict[str, float]:
    """What mode exact computes for an image, and how fast a large matrix product is here."""
    x = images.clone().requires_grad_()
    model = deepcopy(model).requires_grad_(False)
    with FlopCounterMode(display=False) as counter:
        model(x).sum().backward()
    rates = {}
    for dtype in (torch.float32, torch.bfloat16):
        side = 4096 if images.is_cuda else 2048
        a = torch.randn(side, side, dtype=dtype, device=images.device)
        run = interleaved({"": lambda a=a: a @ a}, 20, 1)[""]  # type: ignore[misc]  # bound now
        name = str(dtype).removeprefix("torch.")
        rates[f"matmul_{name}_flops"] = 2 * side**3 * run["images_per_second"]
    return {"flop_per_image": STEPS * counter.get_total_flops() / len(images), **rates}


def _attack(
    found: dict[str, Tensor],
    title: str,
    attack: Attack,
    images: Tensor,
    labels: Tensor,
    batch: int,
) -> None:
    parts = zip(images.split(batch), labels.split(batch), strict=True)
    found[title] = torch.cat([attack(x, y).detach() for x, y in parts])


def _wrong(model: nn.Module, images: Tensor, labels: Tensor, batch: int) -> float:
    with torch.no_grad():
        found = torch.cat([model.eval()(x).argmax(1) for x in images.split(batch)])
    return float((found != labels).float().mean())


def main() -> None:
    """Parse the command line, measure, and keep the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--models", choices=list(MODELS), nargs="*", default=list(MODELS))
    parser.add_argument(
        "--checkpoint", type=Path, help="a model of pbe-fast train, in place of these"
    )
    parser.add_argument("--data", type=Path, help="its test shards")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if (options.checkpoint is None) != (options.data is None):
        parser.error("--checkpoint and --data belong together.")
    torch.set_num_threads(options.threads)
    place = torch.device(options.device)
    kind = place.type
    results = {}
    if options.checkpoint:
        model = load_model(options.checkpoint)
        test = ImageData.open(options.data, model.spec.image_size, workers=0, digests=False)
        results[options.checkpoint.parent.name] = compare(
            model, test, place, 128, 8, options.rounds
        )
    for name in () if options.checkpoint else options.models:
        small = MODELS[name].size <= 64
        if kind == "cuda":
            batch, batches = (512, 8) if small else (128, 4)
        else:
            batch, batches = (32, 2) if small else (4, 2)
        model, test = trained(name, options.folder, str(place))
        results[name] = compare(model, test, place, batch, batches, options.rounds)
    content = {
        **facts(options.device),
        "eps_255": 6,
        "steps": STEPS,
        "margin": MARGIN,
        "models": results,
    }
    write_json(options.out or Path(f"bench/results/pgd_{kind}.json"), content)


if __name__ == "__main__":
    main()
