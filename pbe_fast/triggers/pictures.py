"""Two built-in pictures for the Blend attack, a kitten and a dog, drawn with shapes.

Blend adds one whole picture faintly to every triggered image, so the picture has to have strong
contrast and large forms: it must still be seen by a network at 10 % opacity and 32 pixels.
"""

import math
from collections.abc import Callable, Sequence

import torch
from PIL import Image, ImageDraw

from pbe_fast.errors import TriggerError

__all__ = ["PICTURES", "picture"]

_DRAWN_AT = 768  # pixels a side, reduced with antialiasing to the size asked for

_Point = tuple[float, float]
_Colour = tuple[int, int, int]


class _Board:
    """Shapes in coordinates from -1 to 1, y down, on a square RGB image."""

    def __init__(self, background: _Colour) -> None:
        self.image = Image.new("RGB", (_DRAWN_AT, _DRAWN_AT), background)
        self._draw = ImageDraw.Draw(self.image)

    def _pixels(self, points: Sequence[_Point]) -> list[_Point]:
        return [((x + 1) * _DRAWN_AT / 2, (y + 1) * _DRAWN_AT / 2) for x, y in points]

    def polygon(self, points: Sequence[_Point], colour: _Colour) -> None:
        self._draw.polygon(self._pixels(points), fill=colour)

    def oval(
        self, x: float, y: float, width: float, height: float, colour: _Colour, turn: float = 0.0
    ) -> None:
        """An ellipse by its half axes, turned clockwise by ``turn`` degrees."""
        c, s = math.cos(math.radians(turn)), math.sin(math.radians(turn))
        outline = []
        for k in range(96):
            angle = 2 * math.pi * k / 96
            u, v = width * math.cos(angle), height * math.sin(angle)
            outline.append((x + c * u - s * v, y + s * u + c * v))
        self.polygon(outline, colour)

    def stroke(self, points: Sequence[_Point], width: float, colour: _Colour) -> None:
        pixels = self._pixels(points)
        thick = round(width * _DRAWN_AT / 2)
        self._draw.line(pixels, fill=colour, width=thick, joint="curve")
        for x, y in points:
            self.oval(x, y, width / 2, width / 2, colour)

    def rays(self, colour: _Colour, count: int) -> None:
        """A sunburst from the middle to the edges."""
        for k in range(count):
            a, b = (2 * math.pi * (k + part) / count for part in (0.0, 0.5))
            self.polygon(
                [(0, 0), (2 * math.cos(a), 2 * math.sin(a)), (2 * math.cos(b), 2 * math.sin(b))],
                colour,
            )


def _kitten() -> Image.Image:
    fur, dark, cream = (242, 140, 40), (176, 78, 14), (255, 236, 204)
    pink, ink, white = (245, 130, 150), (24, 18, 24), (255, 255, 255)
    board = _Board((30, 60, 150))
    board.rays((70, 130, 225), 14)
    for side in (-1, 1):
        board.polygon([(side * 0.80, -0.92), (side * 0.84, 0.0), (side * 0.10, -0.50)], fur)
        board.polygon([(side * 0.71, -0.70), (side * 0.72, -0.22), (side * 0.32, -0.46)], pink)
    board.oval(0, 0.14, 0.86, 0.72, fur)
    for side in (-1, 1):  # stripes on the cheeks
        board.polygon([(side * 0.86, 0.02), (side * 0.56, 0.12), (side * 0.85, 0.14)], dark)
        board.polygon([(side * 0.84, 0.30), (side * 0.58, 0.32), (side * 0.79, 0.42)], dark)
    for x, low in ((-0.20, -0.26), (0.0, -0.16), (0.20, -0.26)):  # and on the brow
        board.polygon([(x - 0.07, -0.54), (x + 0.07, -0.54), (x, low)], dark)
    for side in (-1, 1):
        board.oval(side * 0.37, 0.04, 0.235, 0.265, ink)
        board.oval(side * 0.37, 0.04, 0.20, 0.23, (90, 215, 90))
        board.oval(side * 0.36, 0.05, 0.09, 0.20, ink)
        board.oval(side * 0.37 + 0.07, -0.06, 0.06, 0.06, white)
    for side in (-1, 1):
        board.oval(side * 0.16, 0.50, 0.25, 0.20, cream)
    board.oval(0, 0.66, 0.17, 0.14, cream)
    board.polygon([(-0.12, 0.33), (0.12, 0.33), (0.0, 0.46)], pink)
    for side in (-1, 1):
        mouth = [(0.0, 0.46), (side * 0.05, 0.56), (side * 0.15, 0.58), (side * 0.23, 0.52)]
        board.stroke(mouth, 0.035, ink)
        for y, far in ((0.46, 0.36), (0.53, 0.55), (0.60, 0.74)):
            board.stroke([(side * 0.34, y), (side * 0.97, far)], 0.024, white)
    return board.image


def _dog() -> Image.Image:
    fur, brown, white = (214, 160, 96), (96, 52, 26), (252, 246, 236)
    ink, tongue, collar = (20, 16, 18), (236, 74, 104), (200, 24, 40)
    board = _Board((20, 130, 90))
    board.rays((250, 210, 70), 12)
    board.oval(0, 1.02, 0.62, 0.30, fur)
    board.oval(0, 0.86, 0.58, 0.20, collar)
    board.oval(0, 0.00, 0.70, 0.82, fur)
    board.polygon([(-0.11, -0.80), (0.11, -0.80), (0.19, 0.2), (-0.19, 0.2)], white)  # the blaze
    board.oval(0.34, -0.14, 0.28, 0.34, brown, turn=-12)  # a patch about one eye
    for side in (-1, 1):
        board.oval(side * 0.74, -0.10, 0.22, 0.62, brown, turn=-side * 14)
        board.oval(side * 0.33, -0.12, 0.155, 0.175, white)
        board.oval(side * 0.31, -0.10, 0.11, 0.13, ink)
        board.oval(side * 0.31 + 0.045, -0.15, 0.04, 0.04, white)
        board.stroke([(side * 0.20, -0.40), (side * 0.34, -0.45), (side * 0.46, -0.39)], 0.06, ink)
    board.oval(0, 0.72, 0.17, 0.26, ink)
    board.oval(0, 0.75, 0.14, 0.24, tongue)
    board.stroke([(0, 0.62), (0, 0.86)], 0.025, (176, 36, 66))
    for side in (-1, 1):
        board.oval(side * 0.21, 0.42, 0.30, 0.25, white)
        for x, y in ((0.24, 0.42), (0.34, 0.50), (0.36, 0.37)):
            board.oval(side * x, y, 0.022, 0.022, brown)
    board.oval(0, 0.22, 0.22, 0.15, ink)
    board.oval(-0.06, 0.16, 0.07, 0.035, (150, 150, 160))
    board.stroke([(0, 0.30), (0, 0.50)], 0.04, ink)
    for side in (-1, 1):
        jaw = [(0, 0.50), (side * 0.12, 0.59), (side * 0.26, 0.59), (side * 0.38, 0.51)]
        board.stroke(jaw, 0.04, ink)
    return board.image


_DRAWINGS: dict[str, Callable[[], Image.Image]] = {"kitten": _kitten, "dog": _dog}

PICTURES = tuple(_DRAWINGS)


def picture(name: str, size: tuple[int, int]) -> torch.Tensor:
    """Draw a built-in picture.

    Args:
        name: one of ``PICTURES``.
        size: height and width in pixels; the square drawing is stretched to fit.

    Returns:
        RGB, ``(3, H, W)`` uint8, contiguous, on the CPU; a new tensor each time.

    Raises:
        TriggerError: no such picture, or a size that is not positive.
    """
    if name not in _DRAWINGS:
        raise TriggerError(
            f"There is no built-in picture {name!r}. The built-in pictures are: "
            f"{', '.join(PICTURES)}."
        )
    height, width = size
    if height < 1 or width < 1:
        raise TriggerError(f"A picture of {height} x {width} pixels; both must be 1 or more.")
    image = _DRAWINGS[name]().resize((width, height), Image.Resampling.LANCZOS)
    flat = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return flat.view(height, width, 3).permute(2, 0, 1).contiguous()
