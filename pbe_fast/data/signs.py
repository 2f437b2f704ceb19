"""Drawn traffic signs: a data set of up to 43 classes without a download.

Each image is a flat sign face put into a scene: a textured background, a pose (rotation, scale,
shift, mild perspective), light (exposure, contrast, colour cast, shadow), wear, an occasional
obstacle, blur and sensor noise. Several classes share shape and colours and differ by their
pictogram alone, and colours shift with the light, so mean colour does not tell classes apart.

Every image is a pure function of (seed, split, label, index).
"""

import io
import math
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

from pbe_fast.data._sign_faces import FACES, face_image
from pbe_fast.data.shards import Sample
from pbe_fast.errors import ConfigError
from pbe_fast.randomness import numpy_generator

__all__ = ["MAX_CLASSES", "draw_sign", "sign_names", "signs"]

MAX_CLASSES = len(FACES)
_MIN_SIZE = 8
_SUPERSAMPLING = 2
_PNG_UP_TO = 64  # pixels; larger images are stored as JPEG, as cameras do
_JPEG_QUALITY = 95

Floats = npt.NDArray[np.float32]

# Walls, sky, foliage, asphalt, brick, earth, night: what stands behind signs, as RGB.
_SCENE = np.array(
    [
        (150, 170, 195), (200, 212, 225), (70, 98, 52), (40, 64, 34), (118, 116, 112),
        (84, 82, 84), (150, 98, 76), (128, 104, 78), (46, 50, 62), (190, 182, 168),
        (165, 45, 40), (40, 80, 150), (205, 170, 60),
    ],
    np.float32,
)  # fmt: skip


def sign_names(num_classes: int) -> list[str]:
    """Class names in the order of their labels, such as ``limit-30``.

    Raises:
        ConfigError: there are not that many classes.
    """
    if not 1 <= num_classes <= MAX_CLASSES:
        raise ConfigError(
            f"{num_classes} classes of drawn signs were asked for; there are 1 to {MAX_CLASSES}."
        )
    return [face.name for face in FACES[:num_classes]]


def draw_sign(label: int, size: int, generator: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Draw one sign.

    Args:
        label: the class, 0 to ``MAX_CLASSES - 1``.
        size: height and width in pixels, 8 or more.
        generator: where every random choice comes from.

    Returns:
        RGB image, ``(size, size, 3)`` uint8.

    Raises:
        ConfigError: no such class, or a size below 8.
    """
    if not 0 <= label < MAX_CLASSES:
        raise ConfigError(f"Class {label} of the drawn signs; there are 0 to {MAX_CLASSES - 1}.")
    if size < _MIN_SIZE:
        raise ConfigError(f"Drawn signs of {size} pixels; the smallest is {_MIN_SIZE}.")
    canvas = size * _SUPERSAMPLING
    scene = _background(canvas, generator)
    _place(scene, face_image(label, canvas), generator)
    _obstacle(scene, generator)
    small = scene.resize((size, size), Image.Resampling.BOX)
    softness = generator.uniform(0.0, 0.95) ** 2 * size / 32
    if softness > 0.15:
        small = small.filter(ImageFilter.GaussianBlur(softness))
    return _expose(np.asarray(small, np.float32), generator)


def signs(
    *, num_classes: int, per_class: int, size: int, seed: int, split: str
) -> Iterator[Sample]:
    """Samples of a data set of drawn signs, classes in turn so that every shard holds them all.

    Args:
        num_classes: the first so many of the 43 classes.
        per_class: images of each class.
        size: height and width in pixels. Up to 64 images are PNG, above JPEG (quality 95, 4:4:4).
        seed, split: with label and index, all that an image depends on.

    Yields:
        ``num_classes * per_class`` samples with keys such as ``00003/train-000012``.

    Raises:
        ConfigError: an impossible number of classes or size; raised at the first sample.
    """
    sign_names(num_classes)
    for index in range(per_class):
        for label in range(num_classes):
            generator = numpy_generator(seed, "signs", split, label, index)
            image, extension = _encode(draw_sign(label, size, generator))
            yield Sample(
                key=f"{label:05d}/{split}-{index:06d}",
                image=image,
                extension=extension,
                label=label,
                metadata=None,
            )


def _encode(pixels: npt.NDArray[np.uint8]) -> tuple[bytes, str]:
    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    if max(pixels.shape[:2]) <= _PNG_UP_TO:
        image.save(buffer, "PNG", compress_level=6)
        return buffer.getvalue(), "png"
    image.save(buffer, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
    return buffer.getvalue(), "jpg"


@lru_cache(maxsize=8)
def _grid(size: int) -> tuple[Floats, Floats]:
    """x and y of pixel centres, -1 to 1: ``(1, size)`` and ``(size, 1)``."""
    axis = (np.arange(size, dtype=np.float32) + 0.5) * (2 / size) - 1
    return axis[None, :], axis[:, None]


def _texture(size: int, cells: int, generator: np.random.Generator) -> Floats:
    """Smooth noise in [-1, 1] with ``cells`` cells a side: ``(size, size)``."""
    coarse = Image.fromarray(generator.integers(0, 256, (cells, cells), np.uint8))
    smooth = coarse.resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(smooth, np.float32) * (2 / 255) - 1


def _background(size: int, generator: np.random.Generator) -> Image.Image:
    """A gradient between two scene colours, two octaves of texture, and a few blobs and poles."""
    x, y = _grid(size)
    pick = generator.integers(0, len(_SCENE), 2)
    ends = _SCENE[pick] + generator.normal(0, 18, (2, 3)).astype(np.float32)
    turn = generator.uniform(0, 2 * math.pi)
    ramp = np.clip(
        0.5 + (x * math.cos(turn) + y * math.sin(turn)) * generator.uniform(0.2, 3.0), 0, 1
    )  # (S, S); steep ramps look like a horizon or the edge of a house
    grain = generator.uniform(4, 30) * _texture(size, int(generator.integers(3, 7)), generator)
    grain += generator.uniform(0, 26) * _texture(size, int(generator.integers(9, 20)), generator)
    pixels = ends[0] + ramp[:, :, None] * (ends[1] - ends[0]) + grain[:, :, None]  # (S, S, 3)
    scene = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(scene)
    for _ in range(int(generator.integers(0, 5))):
        base = _SCENE[generator.integers(0, len(_SCENE))] + generator.normal(0, 25, 3)
        colour = tuple(int(v) for v in np.clip(base, 0, 255))
        cx, cy = generator.uniform(0, size, 2)
        w, h = generator.uniform(0.04, 0.28, 2) * size
        box = (cx - w, cy - h, cx + w, cy + h)
        if generator.random() < 0.5:
            draw.ellipse(box, fill=colour)
        else:
            draw.rectangle(box, fill=colour)
    return scene


def _place(scene: Image.Image, face: Image.Image, generator: np.random.Generator) -> None:
    """Put the face into the scene at a random pose, on a pole or not, a little worn."""
    size = scene.width
    half = size / 2
    scale = generator.uniform(0.62, 0.95)
    shift = generator.uniform(-1, 1, 2) * (1.04 - scale) * 0.6
    angle = math.radians(generator.uniform(-15, 15))
    lean_x, lean_y = generator.uniform(-0.14, 0.14, 2)
    squeeze = generator.uniform(0.86, 1.0)  # seen from the side
    if generator.random() < 0.5:
        grey = int(generator.integers(70, 170))
        x = (1 + shift[0]) * half
        width = generator.uniform(0.025, 0.06) * size
        ImageDraw.Draw(scene).rectangle(
            (x - width, (1 + shift[1]) * half, x + width, size), fill=(grey, grey, grey)
        )
    # From a scene pixel to a face pixel: to the unit square, unshift, turn back, unscale, lean.
    cos, sin = math.cos(angle) / scale, math.sin(angle) / scale
    to_unit = np.array([[1 / half, 0, -1 - shift[0]], [0, 1 / half, -1 - shift[1]], [0, 0, 1]])
    turn = np.array([[cos / squeeze, sin / squeeze, 0], [-sin, cos, 0], [0, 0, 1]])
    lean = np.array([[1, 0, 0], [0, 1, 0], [lean_x, lean_y, 1]])
    to_pixel = np.array([[half, 0, half], [0, half, half], [0, 0, 1]])
    matrix = to_pixel @ lean @ turn @ to_unit  # (3, 3)
    matrix /= matrix[2, 2]
    posed = face.transform(
        (size, size),
        Image.Transform.PERSPECTIVE,
        matrix.ravel()[:8].tolist(),
        Image.Resampling.BICUBIC,
    )
    pixels = np.asarray(posed, np.float32)  # (S, S, 4)
    fade = generator.uniform(0, 0.35)
    dirt = 1 + generator.uniform(0, 0.22) * _texture(size, 5, generator)
    worn = ((1 - fade) * pixels[:, :, :3] + fade * 128) * dirt[:, :, None]
    plate = Image.fromarray(np.clip(worn, 0, 255).astype(np.uint8))
    scene.paste(plate, (0, 0), posed.getchannel("A"))


def _obstacle(scene: Image.Image, generator: np.random.Generator) -> None:
    """Now and then something stands in front: a twig, leaves, a sticker."""
    if generator.random() > 0.22:
        return
    size = scene.width
    draw = ImageDraw.Draw(scene)
    base = _SCENE[generator.integers(0, len(_SCENE))]
    if generator.random() < 0.4:
        ends = generator.uniform(0, size, 4)
        colour = tuple(int(v) for v in base * 0.6)
        draw.line(ends.tolist(), fill=colour, width=max(1, round(size * 0.04)))
        return
    cx, cy = generator.uniform(0.1, 0.9, 2) * size
    for _ in range(int(generator.integers(1, 5))):
        colour = tuple(int(v) for v in np.clip(base + generator.normal(0, 20, 3), 0, 255))
        dx, dy = generator.normal(0, 0.07, 2) * size
        w, h = generator.uniform(0.03, 0.11, 2) * size
        draw.ellipse((cx + dx - w, cy + dy - h, cx + dx + w, cy + dy + h), fill=colour)


def _expose(pixels: Floats, generator: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Light and sensor: shadow, exposure, contrast, colour cast, noise. ``(S, S, 3)``."""
    size = pixels.shape[0]
    if generator.random() < 0.35:
        x, y = _grid(size)
        turn = generator.uniform(0, 2 * math.pi)
        edge = x * math.cos(turn) + y * math.sin(turn) + generator.uniform(-0.5, 0.5)
        shade = generator.uniform(0.35, 0.85)
        soft = generator.uniform(4, 14)
        lit = shade + (1 - shade) * np.clip(0.5 + soft * edge, 0, 1)  # (S, S)
        pixels = pixels * lit[:, :, None].astype(np.float32)
    contrast = generator.uniform(0.42, 1.15)
    exposure = generator.uniform(-48, 36)
    cast = generator.normal(0, 10, 3).astype(np.float32)
    noise = generator.uniform(1, 13)
    grain = generator.standard_normal(pixels.shape, np.float32)
    seen = (pixels - 118) * contrast + 118 + exposure + cast + noise * grain
    return np.asarray(np.clip(seen + 0.5, 0, 255), np.uint8)
