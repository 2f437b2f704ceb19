"""The flat faces of the drawn traffic signs: plate, border and pictogram, before any pose or light.

A face lives in a square with coordinates from -1 to 1, y down. Plates are drawn large and reduced,
so edges are smooth at every size.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

from PIL import Image, ImageDraw

from pbe_fast.data import _sign_pictograms as pictograms
from pbe_fast.data._sign_pictograms import BLACK, GREY, RED, YELLOW, Colour, Pen, Pictogram

__all__ = ["FACES", "Face", "face_image"]

BLUE: Colour = (18, 82, 168)
WHITE: Colour = (240, 240, 236)

_OVERSAMPLING = 3


@dataclass(frozen=True)
class Face:
    """One sign: its name, the plate's shape, border and fill, and what is drawn on it."""

    name: str
    shape: str
    border: Colour
    fill: Colour
    ink: Colour
    pictogram: Pictogram


def _limit(number: int) -> Face:
    return Face(
        f"limit-{number}", "circle", RED, WHITE, BLACK,
        pictograms.text(str(number), 0.62 if number < 100 else 0.50),
    )  # fmt: skip


def _order(name: str, pictogram: Pictogram) -> Face:
    return Face(name, "circle", WHITE, BLUE, WHITE, pictogram)


def _warning(name: str, pictogram: Pictogram) -> Face:
    return Face(name, "triangle-up", RED, WHITE, BLACK, pictogram)


_ENDED_60 = pictograms.slash_over(pictograms.text("60", 0.62))

# The first ten are three families that differ by pictogram alone, and two loners.
FACES: tuple[Face, ...] = (
    _limit(30),
    _limit(50),
    _limit(80),
    _order("turn-left", pictograms.bent_arrow(-1)),
    _order("turn-right", pictograms.bent_arrow(1)),
    _order("ahead", pictograms.arrow(0)),
    _warning("danger", pictograms.exclamation),
    _warning("bumps", pictograms.bumps),
    Face("stop", "octagon", WHITE, RED, WHITE, pictograms.text("STOP", 0.40)),
    Face("priority", "diamond", WHITE, YELLOW, BLACK, pictograms.nothing),
    _limit(20),
    _limit(60),
    _limit(70),
    _limit(100),
    _limit(120),
    _order("keep-left", pictograms.arrow(225)),
    _order("keep-right", pictograms.arrow(135)),
    _order("ahead-or-left", pictograms.forked_arrow(-1)),
    _order("ahead-or-right", pictograms.forked_arrow(1)),
    _order("roundabout", pictograms.roundabout),
    _warning("curve-left", pictograms.curve(-1)),
    _warning("curve-right", pictograms.curve(1)),
    _warning("winding", pictograms.winding(1)),
    _warning("crossroads", pictograms.plus),
    _warning("snow", pictograms.snow),
    _warning("walkers", pictograms.walker),
    _warning("lights", pictograms.lights),
    _warning("narrow", pictograms.narrow),
    _warning("bicycles", pictograms.bicycle),
    Face("give-way", "triangle-down", RED, WHITE, BLACK, pictograms.nothing),
    Face("no-entry", "circle", WHITE, RED, WHITE, pictograms.bar),
    Face("closed", "circle", RED, WHITE, BLACK, pictograms.nothing),
    Face("no-overtaking", "circle", RED, WHITE, BLACK, pictograms.overtaking),
    Face("no-cars", "circle", RED, WHITE, BLACK, pictograms.one_car),
    Face("no-parking", "circle", RED, BLUE, RED, pictograms.one_slash),
    Face("no-stopping", "circle", RED, BLUE, RED, pictograms.cross),
    Face("end-of-all", "circle", GREY, WHITE, BLACK, pictograms.slash),
    Face(
        "end-of-60",
        "circle",
        GREY,
        WHITE,
        BLACK,
        pictograms.slash_over(pictograms.text("60", 0.62)),
    ),
    Face("priority-ends", "diamond", WHITE, YELLOW, BLACK, pictograms.slash),
    Face("parking", "square", WHITE, BLUE, WHITE, pictograms.text("P", 0.95)),
    Face("dead-end", "square", WHITE, BLUE, WHITE, pictograms.dead_end),
    Face("crosswalk", "square", WHITE, BLUE, WHITE, pictograms.crosswalk),
    Face("two-way", "square", BLACK, YELLOW, BLACK, pictograms.two_way),
)


def _plate(pen: Pen, shape: str, scale: float, colour: Colour) -> None:
    """The plate's outline, ``scale`` times its full size, about its own middle."""
    if shape == "circle":
        pen.disc(0.0, 0.0, 0.94 * scale, colour)
        return
    middle = 0.0
    if shape == "square":
        points = [(-0.82, -0.82), (0.82, -0.82), (0.82, 0.82), (-0.82, 0.82)]
    elif shape == "diamond":
        points = [(0.0, -0.98), (0.98, 0.0), (0.0, 0.98), (-0.98, 0.0)]
    elif shape == "octagon":
        corners = (math.radians(45 * k + 22.5) for k in range(8))
        points = [(math.cos(angle), math.sin(angle)) for angle in corners]
    else:
        middle = 0.28
        points = [(0.0, -0.92), (0.98, 0.80), (-0.98, 0.80)]
    points = [(x * scale, (y - middle) * scale + middle) for x, y in points]
    if shape == "triangle-down":
        points = [(x, -y) for x, y in points]
    pen.polygon(points, colour)


_BORDER = {"circle": 0.80, "triangle-up": 0.68, "triangle-down": 0.68}


@lru_cache(maxsize=512)
def face_image(label: int, size: int) -> Image.Image:
    """The face of class ``label`` as an RGBA image of ``size`` by ``size``; not to be changed."""
    face = FACES[label]
    large = size * _OVERSAMPLING
    image = Image.new("RGBA", (large, large), (0, 0, 0, 0))
    pen = Pen(ImageDraw.Draw(image), large)
    inner = _BORDER.get(face.shape, 0.88)
    if face.border == WHITE:
        inner = 0.92 if face.shape != "diamond" else 0.80
    _plate(pen, face.shape, 1.0, face.border)
    _plate(pen, face.shape, inner, face.fill)
    face.pictogram(pen, face.ink)
    return image.resize((size, size), Image.Resampling.BOX)
