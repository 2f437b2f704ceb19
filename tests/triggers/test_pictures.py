"""The built-in pictures for Blend."""

import pytest
import torch

from pbe_fast.errors import TriggerError
from pbe_fast.triggers.pictures import PICTURES, picture


def test_names() -> None:
    assert PICTURES == ("kitten", "dog")


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.parametrize("size", [(1, 1), (32, 32), (33, 17), (224, 224)])
def test_shape_and_kind(name: str, size: tuple[int, int]) -> None:
    image = picture(name, size)
    assert image.shape == (3, *size)
    assert image.dtype == torch.uint8
    assert image.is_contiguous()


@pytest.mark.parametrize("name", PICTURES)
def test_the_same_each_time_and_a_new_tensor(name: str) -> None:
    first = picture(name, (32, 32))
    kept = first.clone()
    first.zero_()
    torch.testing.assert_close(picture(name, (32, 32)), kept, rtol=0, atol=0)


@pytest.mark.parametrize("name", PICTURES)
def test_contrast_is_high_and_colours_are_many(name: str) -> None:
    image = picture(name, (32, 32)).float()
    assert image.mean(0).std() > 40
    assert (image.amax(0) - image.amin(0)).mean() > 80  # not grey


def test_the_pictures_differ() -> None:
    kitten, dog = (picture(name, (32, 32)).float() for name in PICTURES)
    assert (kitten - dog).abs().mean() > 40


@pytest.mark.parametrize("name", PICTURES)
def test_upright_and_nearly_symmetric(name: str) -> None:
    image = picture(name, (64, 64)).float()
    mirrored = (image - image.flip(2)).abs().mean()
    upside_down = (image - image.flip(1)).abs().mean()
    assert mirrored < 0.6 * upside_down


@pytest.mark.parametrize("name", PICTURES)
def test_sizes_agree(name: str) -> None:
    large = picture(name, (224, 224)).float()[None]
    small = picture(name, (28, 28)).float()
    reduced = torch.nn.functional.avg_pool2d(large, 8)[0]
    assert (reduced - small).abs().mean() < 8


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(TriggerError, match=r"'cat'.*kitten, dog"):
        picture("cat", (32, 32))


def test_empty_sizes_are_refused() -> None:
    with pytest.raises(TriggerError, match="0 x 32"):
        picture("dog", (0, 32))
