"""What is drawn on the traffic signs: digits, arrows, figures, bars.

Everything is in coordinates from -1 to 1 over a square, y down.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import ImageDraw, ImageFont

__all__ = [
    "BLACK",
    "GREY",
    "RED",
    "YELLOW",
    "Colour",
    "Pen",
    "Pictogram",
    "arrow",
    "bar",
    "bent_arrow",
    "bicycle",
    "bumps",
    "cross",
    "crosswalk",
    "curve",
    "dead_end",
    "exclamation",
    "forked_arrow",
    "lights",
    "narrow",
    "nothing",
    "one_car",
    "one_slash",
    "overtaking",
    "plus",
    "roundabout",
    "slash",
    "slash_over",
    "snow",
    "text",
    "turned",
    "two_way",
    "walker",
    "winding",
]

Point = tuple[float, float]
Colour = tuple[int, int, int]

RED: Colour = (196, 22, 34)
YELLOW: Colour = (250, 190, 20)
GREY: Colour = (150, 154, 158)
BLACK: Colour = (20, 20, 24)


@dataclass(frozen=True)
class Pen:
    """Draws in unit coordinates onto a square image of ``size`` pixels."""

    draw: ImageDraw.ImageDraw
    size: int

    def pixels(self, points: Sequence[Point]) -> list[Point]:
        half = self.size / 2
        return [((x + 1) * half, (y + 1) * half) for x, y in points]

    def polygon(self, points: Sequence[Point], colour: Colour) -> None:
        self.draw.polygon(self.pixels(points), fill=colour)

    def line(self, points: Sequence[Point], width: float, colour: Colour) -> None:
        """A stroke with round ends and joints."""
        pixels = self.pixels(points)
        stroke = max(1, round(width * self.size / 2))
        self.draw.line(pixels, fill=colour, width=stroke, joint="curve")
        for x, y in points:
            self.disc(x, y, width / 2, colour)

    def disc(self, x: float, y: float, radius: float, colour: Colour) -> None:
        corners = self.pixels([(x - radius, y - radius), (x + radius, y + radius)])
        self.draw.ellipse(corners, fill=colour)

    def ring(self, x: float, y: float, radius: float, width: float, colour: Colour) -> None:
        corners = self.pixels([(x - radius, y - radius), (x + radius, y + radius)])
        self.draw.ellipse(corners, outline=colour, width=max(1, round(width * self.size / 2)))

    def arc(self, radius: float, start: float, end: float, width: float, colour: Colour) -> None:
        """An arc about the middle; degrees, clockwise from the right."""
        corners = self.pixels([(-radius, -radius), (radius, radius)])
        self.draw.arc(corners, start, end, fill=colour, width=max(1, round(width * self.size / 2)))

    def box(self, x0: float, y0: float, x1: float, y1: float, colour: Colour) -> None:
        self.draw.rectangle(self.pixels([(x0, y0), (x1, y1)]), fill=colour)

    def text(self, text: str, height: float, colour: Colour, y: float = 0.0) -> None:
        """Centred bold text; ``height`` is that of a capital letter."""
        font = ImageFont.load_default(size=height * self.size / 2 / 0.72)
        half = self.size / 2
        self.draw.text(
            (half, (y + 1) * half),
            text,
            fill=colour,
            font=font,
            anchor="mm",
            stroke_width=max(1, round(0.035 * self.size * height)),
            stroke_fill=colour,
        )


Pictogram = Callable[[Pen, Colour], None]


def turned(points: Sequence[Point], degrees: float) -> list[Point]:
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return [(c * x - s * y, s * x + c * y) for x, y in points]


def text(text: str, height: float, y: float = 0.0) -> Pictogram:
    return lambda pen, ink: pen.text(text, height, ink, y)


def arrow(degrees: float, scale: float = 1.0) -> Pictogram:
    """A straight arrow; 0 degrees points up, 90 to the right."""
    outline = [
        (-0.11, 0.58), (-0.11, -0.10), (-0.38, -0.10), (0.0, -0.60),
        (0.38, -0.10), (0.11, -0.10), (0.11, 0.58),
    ]  # fmt: skip
    points = turned([(x * scale, y * scale) for x, y in outline], degrees)
    return lambda pen, ink: pen.polygon(points, ink)


def bent_arrow(side: int) -> Pictogram:
    """From below, then to the left (-1) or the right (+1)."""

    def draw(pen: Pen, ink: Colour) -> None:
        pen.line([(-0.22 * side, 0.52), (-0.22 * side, -0.10), (0.12 * side, -0.10)], 0.22, ink)
        pen.polygon([(0.12 * side, -0.44), (0.58 * side, -0.10), (0.12 * side, 0.24)], ink)

    return draw


def forked_arrow(side: int) -> Pictogram:
    def draw(pen: Pen, ink: Colour) -> None:
        x = -0.18 * side
        pen.line([(x, 0.55), (x, -0.25)], 0.18, ink)
        pen.polygon([(x - 0.27, -0.22), (x, -0.60), (x + 0.27, -0.22)], ink)
        pen.line([(x, 0.30), (x + 0.38 * side, 0.02)], 0.16, ink)
        pen.polygon(
            [(x + 0.30 * side, -0.22), (x + 0.74 * side, -0.12), (x + 0.46 * side, 0.26)], ink
        )

    return draw


def roundabout(pen: Pen, ink: Colour) -> None:
    for turn in (0, 120, 240):
        pen.arc(0.48, turn + 20, turn + 105, 0.16, ink)
        head = turned([(0.62, 0.02), (0.18, 0.02), (0.42, -0.26)], turn + 14)
        pen.polygon(head, ink)


def exclamation(pen: Pen, ink: Colour) -> None:
    pen.polygon([(-0.12, -0.34), (0.12, -0.34), (0.07, 0.20), (-0.07, 0.20)], ink)
    pen.disc(0.0, 0.38, 0.10, ink)


def curve(side: int) -> Pictogram:
    def draw(pen: Pen, ink: Colour) -> None:
        pen.line(
            [(-0.12 * side, 0.48), (-0.12 * side, 0.20), (0.10 * side, 0.0), (0.10 * side, -0.10)],
            0.15,
            ink,
        )
        tip = [(-0.12 * side, -0.10), (0.32 * side, -0.10), (0.10 * side, -0.38)]
        pen.polygon(tip, ink)

    return draw


def winding(side: int) -> Pictogram:
    s = side
    points = [(0.05 * s, 0.50), (-0.16 * s, 0.28), (0.16 * s, 0.04), (-0.10 * s, -0.30)]
    return lambda pen, ink: pen.line(points, 0.15, ink)


def bumps(pen: Pen, ink: Colour) -> None:
    pen.box(-0.46, 0.32, 0.46, 0.44, ink)
    for x in (-0.22, 0.22):
        pen.draw.pieslice(
            pen.pixels([(x - 0.21, 0.06), (x + 0.21, 0.60)]), start=180, end=360, fill=ink
        )


def plus(pen: Pen, ink: Colour) -> None:
    pen.box(-0.08, -0.30, 0.08, 0.50, ink)
    pen.box(-0.36, 0.06, 0.36, 0.22, ink)


def snow(pen: Pen, ink: Colour) -> None:
    for turn in (0, 60, 120):
        a, b = turned([(0.0, -0.34), (0.0, 0.34)], turn)
        pen.line([(a[0], a[1] + 0.15), (b[0], b[1] + 0.15)], 0.09, ink)


def walker(pen: Pen, ink: Colour) -> None:
    pen.disc(0.03, -0.26, 0.11, ink)
    pen.line([(0.02, -0.10), (-0.02, 0.18)], 0.17, ink)
    pen.line([(-0.02, 0.18), (-0.20, 0.48)], 0.11, ink)
    pen.line([(-0.02, 0.18), (0.18, 0.48)], 0.11, ink)
    pen.line([(-0.24, 0.12), (0.02, -0.06), (0.24, 0.08)], 0.09, ink)


def lights(pen: Pen, ink: Colour) -> None:
    pen.box(-0.17, -0.36, 0.17, 0.54, ink)
    for y, colour in ((-0.20, RED), (0.09, YELLOW), (0.38, (30, 150, 70))):
        pen.disc(0.0, y, 0.115, colour)


def narrow(pen: Pen, ink: Colour) -> None:
    for side in (-1, 1):
        pen.line([(0.30 * side, 0.50), (0.30 * side, 0.22), (0.11 * side, 0.02),
                  (0.11 * side, -0.22)], 0.13, ink)  # fmt: skip


def bicycle(pen: Pen, ink: Colour) -> None:
    for x in (-0.26, 0.26):
        pen.ring(x, 0.28, 0.21, 0.08, ink)
    pen.line([(-0.26, 0.28), (-0.08, 0.0), (0.16, 0.0), (0.0, 0.28), (-0.08, 0.0)], 0.07, ink)
    pen.line([(0.26, 0.28), (0.12, -0.14), (0.24, -0.14)], 0.07, ink)


def _car(pen: Pen, x: float, y: float, scale: float, colour: Colour) -> None:
    pen.box(x - 0.24 * scale, y - 0.02 * scale, x + 0.24 * scale, y + 0.18 * scale, colour)
    pen.polygon(
        [(x - 0.18 * scale, y), (x - 0.12 * scale, y - 0.20 * scale),
         (x + 0.12 * scale, y - 0.20 * scale), (x + 0.18 * scale, y)], colour,
    )  # fmt: skip
    for side in (-1, 1):
        pen.box(x + side * 0.17 * scale - 0.06 * scale, y + 0.15 * scale,
                x + side * 0.17 * scale + 0.06 * scale, y + 0.27 * scale, colour)  # fmt: skip


def overtaking(pen: Pen, ink: Colour) -> None:
    _car(pen, -0.30, 0.02, 1.1, RED)
    _car(pen, 0.30, 0.02, 1.1, ink)


def one_car(pen: Pen, ink: Colour) -> None:
    _car(pen, 0.0, 0.0, 1.9, ink)


def slash(pen: Pen, ink: Colour) -> None:
    for shift in (-0.16, 0.0, 0.16):
        pen.line([(-0.52 + shift, 0.52 + shift), (0.52 + shift, -0.52 + shift)], 0.07, ink)


def slash_over(under: Pictogram) -> Pictogram:
    def draw(pen: Pen, ink: Colour) -> None:
        under(pen, GREY)
        slash(pen, ink)

    return draw


def one_slash(pen: Pen, ink: Colour) -> None:
    pen.line([(-0.50, -0.50), (0.50, 0.50)], 0.20, ink)


def cross(pen: Pen, ink: Colour) -> None:
    one_slash(pen, ink)
    pen.line([(-0.50, 0.50), (0.50, -0.50)], 0.20, ink)


def bar(pen: Pen, ink: Colour) -> None:
    pen.box(-0.62, -0.17, 0.62, 0.17, ink)


def nothing(pen: Pen, ink: Colour) -> None:
    """A plate that says it all by its shape."""


def dead_end(pen: Pen, ink: Colour) -> None:
    pen.box(-0.14, -0.20, 0.14, 0.66, ink)
    pen.box(-0.50, -0.48, 0.50, -0.20, RED)


def crosswalk(pen: Pen, ink: Colour) -> None:
    pen.polygon([(0.0, -0.66), (0.70, 0.56), (-0.70, 0.56)], ink)
    pen.disc(0.03, -0.22, 0.09, BLACK)
    pen.line([(0.02, -0.08), (-0.02, 0.16)], 0.14, BLACK)
    pen.line([(-0.20, 0.46), (-0.02, 0.16), (0.18, 0.46)], 0.09, BLACK)


def two_way(pen: Pen, ink: Colour) -> None:
    for side in (-1, 1):
        turn = [(x * 0.8 + 0.26 * side, y * 0.9 * side) for x, y in
                [(-0.11, 0.6), (-0.11, -0.15), (-0.30, -0.15), (0.0, -0.6), (0.30, -0.15),
                 (0.11, -0.15), (0.11, 0.6)]]  # fmt: skip
        pen.polygon(turn, ink)
