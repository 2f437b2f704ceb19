"""Real photographs and signs, where PBE_DATA names the folder that holds them."""

import os
from pathlib import Path

import numpy as np
import pytest

from pbe_fast.data.converters import read_image_folder
from pbe_fast.data.loader import ImageData
from pbe_fast.data.shards import Sample, verify_shards, write_shards

pytestmark = pytest.mark.data


@pytest.fixture(scope="module")
def root() -> Path:
    """The folder with ``imagenet_samples`` and ``gtsrb32``."""
    folder = os.environ.get("PBE_DATA")
    if not folder:
        pytest.skip("PBE_DATA is not set: no real images to test with")
    return Path(folder)


def test_every_photograph_becomes_224_pixels(root: Path, tmp_path: Path) -> None:
    """200 photographs at their own sizes, some of them grey, read in worker processes."""
    files = sorted((root / "imagenet_samples").glob("*.JPEG"))
    assert len(files) == 200
    samples = (
        Sample(file.stem.replace(".", "_"), file.read_bytes(), "jpg", index % 10)
        for index, file in enumerate(files)
    )
    manifest = write_shards(
        samples, tmp_path / "shards", classes=[str(i) for i in range(10)], shard_bytes=4 << 20
    )
    assert len(manifest.shards) > 3
    assert verify_shards(manifest) == []
    data = ImageData.open(tmp_path / "shards", 224, workers=2)
    batches = list(data.read(data.ids, 32))
    assert not data.quarantine.reasons
    assert np.concatenate([batch.ids for batch in batches]).tolist() == list(range(200))
    images = np.concatenate([batch.images for batch in batches])
    assert images.shape == (200, 3, 224, 224)
    grey = (images[:, 0] == images[:, 1]).all((1, 2)) & (images[:, 1] == images[:, 2]).all((1, 2))
    assert 0 < grey.sum() < 20
    assert images.std((1, 2, 3)).min() > 5  # no empty image


def test_the_test_signs_of_gtsrb_convert(root: Path, tmp_path: Path) -> None:
    """12,630 signs of 43 classes, each stored with its own bytes."""
    classes, samples = read_image_folder(root / "gtsrb32" / "test")
    manifest = write_shards(samples, tmp_path / "shards", classes=classes)
    assert (len(manifest), manifest.num_classes) == (12_630, 43)
    counts = {
        name: len(list((root / "gtsrb32" / "test" / name).iterdir())) for name in manifest.classes
    }
    assert np.bincount(manifest.labels).tolist() == list(counts.values())
