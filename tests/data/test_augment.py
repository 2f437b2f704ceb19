"""Views: any image to the square of the model; augmentation is a function of the sample."""

import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from pbe_fast.data import augment
from pbe_fast.data.augment import View, crop_rotate

Pixels = npt.NDArray[np.uint8]

MIDDLE = 0.5
ALMOST_ONE = 1 - 2**-53  # the largest draw


def _images(count: int, size: int, seed: int = 0) -> Tensor:
    pixels = np.random.default_rng(seed).integers(1, 256, (count, 3, size, size), np.uint8)
    return torch.from_numpy(pixels)


def _pixels(height: int, width: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def _draws(*rows: tuple[float, float, float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


# crop_rotate


@pytest.mark.parametrize("size", [1, 2, 7, 8, 9, 31, 32, 33, 64, 224])
def test_draws_in_the_middle_change_nothing(size: int) -> None:
    images = _images(2, size)
    out = crop_rotate(images, _draws((MIDDLE,) * 3, (MIDDLE,) * 3))
    assert out.dtype == torch.uint8
    assert torch.equal(out, images)


def _draw_for(shift: int, pad: int) -> float:
    """The middle of the draws that shift by so many whole pixels."""
    return (shift + pad + 0.5) / (2 * pad + 1)


@pytest.mark.parametrize("size", [32, 40, 33])
@pytest.mark.parametrize("shift", [(3, 0), (-3, 0), (0, 2), (0, -2), (1, -4), (-4, 4)])
def test_a_shift_is_a_crop_of_the_padded_image(size: int, shift: tuple[int, int]) -> None:
    images, pad = _images(1, size), size // 8
    x, y = shift
    out = crop_rotate(images, _draws((_draw_for(x, pad), _draw_for(y, pad), MIDDLE)))
    padded = torch.nn.functional.pad(images, (pad,) * 4)  # black, by an eighth of the side
    left, top = pad + x, pad + y
    assert torch.equal(out, padded[:, :, top : top + size, left : left + size])


def test_the_extreme_draws_shift_by_an_eighth_of_the_side_and_bring_black_in() -> None:
    images = _images(2, 32)
    out = crop_rotate(images, _draws((0, MIDDLE, MIDDLE), (MIDDLE, ALMOST_ONE, MIDDLE)))
    assert not out[0, :, :, :4].any()
    assert torch.equal(out[0, :, :, 4:], images[0, :, :, :-4])
    assert not out[1, :, -4:].any()
    assert torch.equal(out[1, :, :-4], images[1, :, 4:])


def test_all_shifts_are_drawn_equally_often() -> None:
    draws = torch.linspace(0, 1, 901, dtype=torch.float64)[:-1]
    image = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    image[0, :, 16, 16] = 255
    out = crop_rotate(
        image.expand(900, -1, -1, -1), torch.stack([draws, *[torch.full((900,), 0.5)] * 2], 1)
    )
    columns = out[:, 0, 16].argmax(1)
    assert torch.bincount(columns)[12:21].tolist() == [100] * 9


def test_a_rotation_turns_by_ten_degrees_at_most_about_the_centre() -> None:
    size, radius = 65, 24  # odd, so that the centre is a pixel
    image = torch.zeros(1, 3, size, size, dtype=torch.uint8)
    image[..., 31:34, 32 + radius - 1 : 32 + radius + 2] = 255  # a spot to the right
    for draw, degrees in ((0.0, -10.0), (0.25, -5.0), (0.75, 5.0), (ALMOST_ONE, 10.0)):
        out = crop_rotate(image, _draws((MIDDLE, MIDDLE, draw)))[0, 0].float()
        y, x = torch.meshgrid(torch.arange(65.0) - 32, torch.arange(65.0) - 32, indexing="ij")
        cx, cy = float((out * x).sum() / out.sum()), float((out * y).sum() / out.sum())
        # The image is sampled at turned places, so a positive angle turns it anticlockwise
        # as it is seen, with y downwards.
        assert math.degrees(math.atan2(-cy, cx)) == pytest.approx(degrees, abs=0.2)
        assert math.hypot(cx, cy) == pytest.approx(radius, abs=0.1)


def test_a_rotation_brings_black_corners_in_and_keeps_the_middle() -> None:
    image = torch.full((1, 3, 32, 32), 200, dtype=torch.uint8)
    out = crop_rotate(image, _draws((MIDDLE, MIDDLE, 0.0)))
    assert not out[0, :, [0, 0, -1, -1], [0, -1, 0, -1]].any()
    assert (out[..., 8:24, 8:24] == 200).all()


def test_no_images_are_no_images() -> None:
    empty = torch.empty(0, 3, 32, 32, dtype=torch.uint8)
    assert crop_rotate(empty, torch.empty(0, 3, dtype=torch.float64)).shape == empty.shape
    assert View(32, "crop_rotate").batch(empty, np.array([], np.int64)).shape == empty.shape


# the batch


def test_an_image_is_augmented_alike_in_any_batch() -> None:
    images, ids = _images(6, 32), np.array([5, 900, 7, 1, 3, 44], np.int64)
    view = View(32, "crop_rotate", seed=3, stream=("epoch", 2))
    whole = view.batch(images, ids)
    order = np.array([4, 0, 5, 2, 1, 3])
    assert torch.equal(view.batch(images[order], ids[order]), whole[order])
    for i in range(6):
        assert torch.equal(view.batch(images[i : i + 1], ids[i : i + 1]), whole[i : i + 1])


def test_epochs_seeds_and_samples_are_augmented_differently() -> None:
    image = _images(1, 32).expand(2, -1, -1, -1)
    ids = np.array([0, 1], np.int64)
    outs = [
        View(32, "crop_rotate", seed=seed, stream=stream).batch(image, ids)
        for seed, stream in ((0, ("epoch", 0)), (0, ("epoch", 1)), (1, ("epoch", 0)))
    ]
    seen = {out[i].numpy().tobytes() for out in outs for i in range(2)}
    assert len(seen) == 6


@pytest.mark.parametrize("kind", ["none", "resized_crop"])
def test_other_views_leave_the_batch_alone(kind: augment.Augment) -> None:
    images = _images(2, 16)
    assert torch.equal(View(16, kind).batch(images, np.arange(2)), images)


# one image, without augmentation


@pytest.mark.parametrize("size", [1, 31, 32, 224])
def test_an_image_of_the_size_is_taken_as_it_is(size: int) -> None:
    pixels = _pixels(size, size)
    np.testing.assert_array_equal(View(size).image(pixels, 0), pixels)
    np.testing.assert_array_equal(View(size, "crop_rotate").image(pixels, 0), pixels)


def test_small_images_are_resized_whole() -> None:
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[:, 36:] = 255  # at the right edge, which a centre cut would lose
    out = View(32).image(pixels, 0)
    assert out.shape == (32, 32, 3)
    assert (out[:, -2:] == 255).all()
    assert not out[:, :26].any()


@pytest.mark.parametrize(("height", "width"), [(256, 256), (256, 512), (600, 256), (100, 90)])
def test_large_images_show_the_central_seven_eighths_of_their_shorter_side(
    height: int, width: int
) -> None:
    size = 112
    y, x = np.mgrid[0:height, 0:width]
    side = min(height, width) * 0.875
    inside = (abs(x + 0.5 - width / 2) < side / 2) & (abs(y + 0.5 - height / 2) < side / 2)
    pixels = np.repeat(np.where(inside, 255, 0).astype(np.uint8)[..., None], 3, axis=2)
    out = View(size).image(pixels, 0)
    assert out.shape == (size, size, 3)
    assert (out[2:-2, 2:-2] == 255).all()  # nothing from outside
    # And all of it: what lies just inside the border is still seen.
    marked = pixels.copy()
    marked[:, : int(width / 2 - side / 2 + side / 16)] = 0
    assert not View(size).image(marked, 0)[:, :4].any()


@pytest.mark.parametrize("size", [1, 5, 32, 65, 224])
@pytest.mark.parametrize("kind", ["none", "crop_rotate", "resized_crop"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (500, 1), (3, 2), (47, 61)])
def test_every_shape_becomes_the_square(
    size: int, kind: augment.Augment, shape: tuple[int, int]
) -> None:
    out = View(size, kind, flip=True).image(_pixels(*shape), 12)
    assert out.shape == (size, size, 3)
    assert out.dtype == np.uint8


SIDE = st.one_of(st.sampled_from([1, 2, 3]), st.integers(1, 300))


@settings(deadline=None, max_examples=100)
@given(height=SIDE, width=SIDE, size=st.integers(1, 120), data=st.data())
def test_resizing_a_box_is_what_pil_makes_of_the_cut_out_box(
    height: int, width: int, size: int, data: st.DataObject
) -> None:
    """Within 2 of 255: both count with integers, PIL with 22 bits and torch with 15 or fewer."""
    left, top = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    right, bottom = (
        data.draw(st.integers(left + 1, width)),
        data.draw(st.integers(top + 1, height)),
    )
    pixels = _pixels(height, width, seed=height * width)
    near = data.draw(st.floats(-0.49, 0.49))  # the box is taken at the nearest whole pixels
    box = (max(0, left + near), max(0, top - near), min(width, right + near), bottom)
    cut = Image.fromarray(pixels[top:bottom, left:right])
    expected = np.asarray(cut.resize((size, size), Image.Resampling.BILINEAR))
    out = augment._resize(pixels, size, box)
    assert out.shape == (size, size, 3)
    assert np.abs(out.astype(int) - expected).max() <= 2


@pytest.mark.parametrize("box", [(7.0, 4.0, 7.0, 4.0), (6.6, 3.7, 6.9, 4.0), (2.2, 1.1, 2.4, 1.4)])
def test_a_box_of_less_than_a_pixel_is_a_pixel(box: augment.Box) -> None:
    pixels = _pixels(4, 7)
    out = augment._resize(pixels, 5, box)
    assert (out == pixels[min(round(box[1]), 3), min(round(box[0]), 6)]).all()


# resized_crop

DRAW = st.one_of(st.sampled_from([0.0, 0.5, ALMOST_ONE]), st.floats(0, ALMOST_ONE))


@settings(deadline=None, max_examples=300)
@given(
    height=st.one_of(st.sampled_from([1, 500]), st.integers(1, 5000)),
    width=st.one_of(st.sampled_from([1, 500]), st.integers(1, 5000)),
    draws=st.lists(DRAW, min_size=5, max_size=5),
)
def test_the_random_box_is_inside_the_image(height: int, width: int, draws: list[float]) -> None:
    left, top, right, bottom = augment._random_box(height, width, np.array(draws))
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height


@settings(deadline=None, max_examples=100)
@given(draws=st.lists(DRAW, min_size=5, max_size=5), side=st.integers(200, 400))
def test_the_random_box_of_a_square_has_the_area_and_aspect_that_are_drawn(
    draws: list[float], side: int
) -> None:
    left, top, right, bottom = augment._random_box(side, side, np.array(draws))
    area, aspect = (right - left) * (bottom - top) / side**2, (right - left) / (bottom - top)
    assert 0.25 * 0.866 - 1e-9 <= area <= 0.25 + 0.75 * draws[0] + 1e-9
    assert 3 / 4 - 1e-9 <= aspect <= 4 / 3 + 1e-9
    if draws[0] < 0.6:  # it fits whatever its aspect
        assert area == pytest.approx(0.25 + 0.75 * draws[0])
        assert math.log(aspect) == pytest.approx((2 * draws[1] - 1) * math.log(4 / 3))


def test_the_place_of_the_box_is_drawn_over_the_whole_image() -> None:
    for draw, left, top in ((0.0, 0.0, 0.0), (0.5, 25.0, 25.0), (1.0, 50.0, 50.0)):
        box = augment._random_box(100, 100, np.array([0.0, 0.5, draw, draw, 0.0]))
        assert box == pytest.approx((left, top, left + 50, top + 50))


def test_a_crop_shows_its_box(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(augment, "_random_box", lambda *_: (8.0, 4.0, 24.0, 20.0))
    pixels = _pixels(40, 40)
    out = View(16, "resized_crop").image(pixels, 0)
    np.testing.assert_array_equal(out, pixels[4:20, 8:24])


def test_half_of_the_images_are_mirrored_and_only_when_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(augment, "_random_box", lambda h, w, _: (0.0, 0.0, float(w), float(h)))
    pixels = _pixels(16, 16)
    plain = [View(16, "resized_crop").image(pixels, i) for i in range(200)]
    assert all(np.array_equal(out, pixels) for out in plain)
    flipped = [View(16, "resized_crop", flip=True).image(pixels, i) for i in range(200)]
    mirrored = sum(np.array_equal(out, pixels[:, ::-1]) for out in flipped)
    assert mirrored + sum(np.array_equal(out, pixels) for out in flipped) == 200
    assert 70 <= mirrored <= 130


def test_images_that_are_not_augmented_are_not_flipped() -> None:
    pixels, images = _pixels(32, 32), _images(20, 32)
    for i in range(20):
        np.testing.assert_array_equal(View(32, "none", flip=True).image(pixels, i), pixels)
    assert torch.equal(View(32, "none", flip=True).batch(images, np.arange(20)), images)


def test_crops_depend_on_sample_seed_and_epoch() -> None:
    pixels = _pixels(50, 50)
    views = [
        View(24, "resized_crop", seed=seed, stream=("epoch", epoch))
        for seed in (0, 1)
        for epoch in (0, 1)
    ]
    outs = [view.image(pixels, i).tobytes() for view in views for i in (0, 1)]
    assert len(set(outs)) == len(outs)
    assert outs == [view.image(pixels, i).tobytes() for view in views for i in (0, 1)]


def test_flip_mirrors_half_of_small_images_too() -> None:
    ids = np.arange(200)
    images = torch.zeros(200, 3, 9, 9, dtype=torch.uint8)
    images[:, :, :, 1] = 255  # at the left; shifts are by one pixel at most
    plain = View(9, "crop_rotate", flip=False, seed=1).batch(images, ids)
    flipped = View(9, "crop_rotate", flip=True, seed=1).batch(images, ids)
    same = (plain == flipped).flatten(1).all(1)
    assert 60 < int(same.sum()) < 140  # half of them, and those with the same crop as before
    right = flipped[~same].float().mean((1, 2))[:, 5:].sum(1)
    left = flipped[~same].float().mean((1, 2))[:, :4].sum(1)
    assert bool((right > left).all())
