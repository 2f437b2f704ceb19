"""The drawn signs: a pure function of its arguments, and classes that differ."""

import io

import numpy as np
import pytest
from PIL import Image

from pbe_fast.data._sign_faces import FACES, face_image
from pbe_fast.data.decode import decode_rgb
from pbe_fast.data.signs import MAX_CLASSES, draw_sign, sign_names, signs
from pbe_fast.errors import ConfigError
from pbe_fast.randomness import numpy_generator


def _draw(label: int, size: int = 32, *stream: int) -> np.ndarray:
    return draw_sign(label, size, numpy_generator(0, "test", *stream))


def test_there_are_43_classes_with_their_own_names() -> None:
    assert MAX_CLASSES == 43
    assert len(set(sign_names(43))) == 43
    assert sign_names(3) == sign_names(43)[:3]


@pytest.mark.parametrize("count", [0, -1, 44])
def test_impossible_numbers_of_classes_are_refused(count: int) -> None:
    with pytest.raises(ConfigError, match="1 to 43"):
        sign_names(count)
    with pytest.raises(ConfigError, match="1 to 43"):
        next(signs(num_classes=count, per_class=1, size=32, seed=0, split="train"))


def test_same_arguments_same_bytes_whatever_is_drawn_before() -> None:
    def take(count: int, **changed: object) -> dict[str, bytes]:
        options = {"num_classes": 4, "per_class": count, "size": 16, "seed": 5, "split": "train"}
        return {s.key: s.image for s in signs(**(options | changed))}  # type: ignore[arg-type]

    few, many = take(2), take(3)
    assert all(many[key] == image for key, image in few.items())
    more_classes = take(2, num_classes=6)
    assert all(more_classes[key] == image for key, image in few.items())
    assert set(few.values()).isdisjoint(take(2, seed=6).values())
    assert set(few.values()).isdisjoint(take(2, split="test").values())


@pytest.mark.parametrize("label", range(MAX_CLASSES))
def test_every_label_draws_and_varies(label: int) -> None:
    first, again, other = _draw(label, 32, 1), _draw(label, 32, 1), _draw(label, 32, 2)
    assert first.shape == (32, 32, 3)
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, again)
    assert np.abs(first.astype(int) - other).mean() > 3


def test_every_two_classes_have_different_faces() -> None:
    faces = [np.asarray(face_image(label, 32), np.float32) for label in range(MAX_CLASSES)]
    for a in range(MAX_CLASSES):
        for b in range(a):
            differing = (np.abs(faces[a] - faces[b]).max(axis=2) > 48).mean()
            assert differing > 0.008, f"{FACES[a].name} and {FACES[b].name}"


def test_the_label_shows_in_the_image_and_nothing_else_depends_on_it() -> None:
    # The same random numbers with another label: only the sign may change, not the scene.
    a, b = (_draw(label, 64, 3).astype(int) for label in (0, 1))
    changed = np.abs(a - b).max(axis=2) > 8
    assert 0.005 < changed.mean() < 0.5


def test_mean_colour_does_not_tell_the_classes_apart() -> None:
    images = {k: [_draw(k, 32, k, i) for i in range(24)] for k in range(10)}
    means = {k: np.stack([i.mean((0, 1)) for i in group]) for k, group in images.items()}
    centres = np.stack([group[:12].mean(0) for group in means.values()])  # (10, 3)
    right = [
        np.argmin(((mean - centres) ** 2).sum(1)) == k
        for k, group in means.items()
        for mean in group[12:]
    ]
    assert np.mean(right) < 0.45


@pytest.mark.parametrize("size", [8, 33, 224])
def test_any_size(size: int) -> None:
    image = _draw(7, size)
    assert image.shape == (size, size, 3)
    assert image.std() > 5


def test_wrong_labels_and_sizes_are_refused() -> None:
    for label in (-1, 43):
        with pytest.raises(ConfigError, match="0 to 42"):
            _draw(label)
    with pytest.raises(ConfigError, match="smallest is 8"):
        _draw(0, 7)


def test_samples_have_their_class_in_turn_and_unique_keys() -> None:
    samples = list(signs(num_classes=5, per_class=3, size=16, seed=0, split="train"))
    assert [s.label for s in samples] == [0, 1, 2, 3, 4] * 3
    assert len({s.key for s in samples}) == 15
    assert samples[6].key == "00001/train-000001"


def test_small_images_are_lossless_png() -> None:
    (sample,) = signs(num_classes=1, per_class=1, size=64, seed=3, split="test")
    assert sample.extension == "png"
    expected = draw_sign(0, 64, numpy_generator(3, "signs", "test", 0, 0))
    np.testing.assert_array_equal(decode_rgb(sample.image), expected)


def test_large_images_are_jpeg_with_full_colour() -> None:
    (sample,) = signs(num_classes=1, per_class=1, size=65, seed=3, split="test")
    assert sample.extension == "jpg"
    with Image.open(io.BytesIO(sample.image)) as image:
        assert image.format == "JPEG"
        assert [layer[1:3] for layer in image.layer] == [(1, 1)] * 3  # 4:4:4
    expected = draw_sign(0, 65, numpy_generator(3, "signs", "test", 0, 0))
    error = np.abs(decode_rgb(sample.image).astype(int) - expected)
    assert error.mean() < 4
