"""What a worker of a fleet needs to become a site: configuration, models, where the data is."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pbe_fast._jobs import Tester
from pbe_fast._site import Sets, Site, open_sets
from pbe_fast.config import PurifyConfig
from pbe_fast.data.loader import Quarantine
from pbe_fast.device import choose_device
from pbe_fast.models import Classifier, ModelSpec, create_model
from pbe_fast.progress import Silent

__all__ = ["Blueprint", "Damage", "noted", "with_absolute_paths"]

Damage = dict[tuple[str, str, str], str]  # data set, shard, key: what is wrong


@dataclass(frozen=True)
class Blueprint:
    """Sent to every worker.

    Attributes:
        config: as resolved, with absolute paths, which every machine must see.
        spec, weights: the infected model.
        threads: of torch on a CPU; results depend on it in the last bits.
    """

    config: PurifyConfig
    spec: ModelSpec
    weights: Mapping[str, Tensor]
    threads: int

    @classmethod
    def of(cls, site: Site, threads: int) -> "Blueprint":
        """Of the driver's site, whose models are on the CPU."""
        return cls(
            with_absolute_paths(site.config), site.infected.spec, weights_of(site.infected), threads
        )

    def build(self) -> Site:
        """The site, in the process that calls. Undecodable images are noted, not counted."""
        torch.set_num_threads(self.threads)
        quarantine = Quarantine(None, 1.0)
        # The driver has looked at every shard's presence; scoring compares each one's SHA-256.
        data = self.config.data.model_copy(update={"check_digests": False, "truth": None})
        config = self.config.model_copy(update={"data": data})
        sets = open_sets(config, quarantine)
        tester = Tester(config, quarantine, self.spec.num_classes, Silent())
        infected, model = rebuilt(self.spec, self.weights), rebuilt(self.spec, self.weights)
        device = choose_device(
            config.device, config.precision, model, data.image_size, layout=config.memory_format
        )
        device.place(infected.requires_grad_(False))
        return Site(config, sets, infected, model, tester, device)


def weights_of(model: Classifier) -> dict[str, Tensor]:
    """A copy on the CPU."""
    return {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}


def rebuilt(spec: ModelSpec, weights: Mapping[str, Tensor]) -> Classifier:
    """A model built anew; nothing is unpickled that names code."""
    model = create_model(spec)
    model.load_state_dict(weights)
    return model


def noted(site: Site) -> Damage:
    """The undecodable images that a worker has met since it was last asked."""
    found: Damage = {}
    for data in (*site.sets.opened, site.tester.data):
        if data is not None:
            found |= data.quarantine.reasons
            data.quarantine.reasons.clear()
    return found


def report_damage(sets: Sets, tester: Tester, damage: Damage) -> None:
    """Count what workers noted against the driver's budget.

    Raises:
        QuarantineError: it is spent.
    """
    opened = [data for data in (*sets.opened, tester.data) if data is not None]
    for (root, _, key), reason in damage.items():
        for data in opened:
            if str(_absolute(data.manifest.root)) == root:
                row = data.manifest.keys.index(key).as_py()
                data.quarantine.add(data.manifest, [(row, reason)])
                break


def with_absolute_paths(config: PurifyConfig) -> PurifyConfig:
    """The configuration as a process in another folder needs it."""
    data = config.data
    update: dict[str, Any] = {
        name: _absolute(getattr(data, name))
        for name in ("train", "clean", "mined", "test", "attack", "truth")
        if getattr(data, name) is not None
    }
    return config.model_copy(update={"data": data.model_copy(update=update)})


def _absolute(path: Path | str) -> Any:
    text = str(path)
    return path if "://" in text else type(path)(os.path.abspath(text))
