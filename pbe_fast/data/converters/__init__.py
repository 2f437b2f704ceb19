"""Data sets in their usual forms, as samples to write into shards. One file a source."""

from pbe_fast.data.converters._common import Samples
from pbe_fast.data.converters.cifar10 import read_cifar10
from pbe_fast.data.converters.gtsrb import read_gtsrb
from pbe_fast.data.converters.image_folder import read_image_folder

__all__ = ["Samples", "read_cifar10", "read_gtsrb", "read_image_folder"]
