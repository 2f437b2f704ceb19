"""Data sets in their usual forms, as samples to write into shards. One file a source."""

from pbe_fast.data.converters._attack_result import AttackResult, read_attack_result
from pbe_fast.data.converters._common import Samples
from pbe_fast.data.converters.backdoorbench import (
    PoisonedTraining,
    read_backdoorbench_test,
    read_backdoorbench_train,
)
from pbe_fast.data.converters.cifar10 import read_cifar10
from pbe_fast.data.converters.gtsrb import read_gtsrb
from pbe_fast.data.converters.image_folder import read_image_folder

__all__ = [
    "AttackResult",
    "PoisonedTraining",
    "Samples",
    "read_attack_result",
    "read_backdoorbench_test",
    "read_backdoorbench_train",
    "read_cifar10",
    "read_gtsrb",
    "read_image_folder",
]
