"""Progressive Backdoor Erasing: an infected classifier in, a purified one and suspects out."""

from pbe_fast.config import (
    FeaturesConfig,
    MineConfig,
    PoisonConfig,
    PurifyConfig,
    ScanConfig,
    TrainConfig,
    load_config,
)
from pbe_fast.data.manifest import Manifest
from pbe_fast.errors import PbeError
from pbe_fast.mine import mine
from pbe_fast.models import ModelSpec, load_model
from pbe_fast.purify import purify
from pbe_fast.report import write_report
from pbe_fast.scan import scan
from pbe_fast.train import train
from pbe_fast.triggers.poisoning import poison

__all__ = [
    "FeaturesConfig",
    "Manifest",
    "MineConfig",
    "ModelSpec",
    "PbeError",
    "PoisonConfig",
    "PurifyConfig",
    "ScanConfig",
    "TrainConfig",
    "load_config",
    "load_model",
    "mine",
    "poison",
    "purify",
    "scan",
    "train",
    "write_report",
]
