"""From a matplotlib figure to SVG that can stand inside an HTML page.

What matplotlib writes is made for a file of its own: fixed colours and fonts, a style sheet that
would reach the whole page, ids that repeat from figure to figure. Here it is taken apart and
put together again: colours become CSS variables with a fallback, text stays text in the page's
font, ids are kept where something refers to them, and nothing depends on the clock.
"""

import hashlib
import io
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from xml.etree import ElementTree

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

__all__ = [
    "CLEAN",
    "FONT_SIZE",
    "GRID",
    "HEIGHT",
    "INK",
    "MARGIN",
    "MUTED",
    "POISON",
    "WIDTH",
    "clean_text",
    "panel",
    "style",
    "to_svg",
]

# The roles of colour. Each is drawn as its hex value and written as its CSS value: the page sets
# the variables for light and dark, the fallbacks are readable on both. Blue and vermilion stay
# apart for every common kind of colour blindness.
INK = "#010203"
MUTED = "#757778"
GRID = "#8f9192"
CLEAN = "#2a7fc4"
POISON = "#d95f1e"
_CSS = {
    INK: "currentColor",
    MUTED: f"var(--figure-muted,{MUTED})",
    GRID: f"var(--figure-grid,{GRID})",
    CLEAN: f"var(--figure-clean,{CLEAN})",
    POISON: f"var(--figure-poison,{POISON})",
}

WIDTH, HEIGHT = 440.0, 280.0  # user units, equal to CSS pixels when not scaled
FONT_SIZE = 12.5
MARGIN = 10.0  # user units around a picture that stands alone
_LINES = "stroke-linejoin:round;stroke-linecap:butt"
_FONTS = "DejaVu Sans,Verdana,Arial,sans-serif"
_SVG = "{http://www.w3.org/2000/svg}"
_XLINK_HREF = "{http://www.w3.org/1999/xlink}href"
_REFERENCE = re.compile(r"url\(#([^)]+)\)")
_FONT_SHORTHAND = re.compile(r"^(?:.*\s)?(?P<size>[\d.]+px)(?:\s|$)")
# Characters that neither XML nor HTML can carry, and lone surrogates, which UTF-8 cannot; and
# those that turn the order of the text around them, in which a name could pose as another.
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff"
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]"
)


def clean_text(text: str) -> str:
    """``text`` with what a page cannot carry, and what reorders text, shown as U+FFFD."""
    return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text)


@contextmanager
def style() -> Iterator[None]:
    """Draw and render inside this: settings of the user's matplotlib do not leak in or out."""
    with matplotlib.rc_context(
        {
            "axes.unicode_minus": True,
            "font.family": [
                "DejaVu Sans"
            ],  # comes with matplotlib, so the layout is the same everywhere
            "figure.autolayout": False,
            "figure.constrained_layout.use": False,
            "font.size": FONT_SIZE,
            "hatch.linewidth": 1.2,
            "legend.fancybox": False,
            "lines.scale_dashes": True,
            "path.simplify": True,
            "path.simplify_threshold": 0.1111111111111111,
            "path.sketch": None,
            "savefig.bbox": None,
            "svg.fonttype": "none",
            "svg.hashsalt": "pbe-fast",
            "svg.image_inline": True,
            "text.parse_math": False,
            "text.usetex": False,
        }
    ):
        yield


def panel(*, left: float, right: float, top: float, bottom: float) -> Axes:
    """One empty set of axes on a transparent figure; margins in CSS pixels."""
    figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72), dpi=72)
    FigureCanvasSVG(figure)
    figure.patch.set_visible(False)
    axes = figure.add_axes(
        (
            left / WIDTH,
            bottom / HEIGHT,
            (WIDTH - left - right) / WIDTH,
            (HEIGHT - top - bottom) / HEIGHT,
        )
    )
    axes.patch.set_visible(False)
    axes.set_axisbelow(True)
    axes.grid(False)
    axes.tick_params(which="both", length=0, pad=6, colors=INK, labelcolor=INK, labelsize=FONT_SIZE)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(GRID)
        spine.set_linewidth(1.0)
    return axes


def _declarations(text: str, colours: Mapping[str, str]) -> dict[str, str]:
    """The declarations of a style attribute: colours as given, fonts left to what is around."""
    found: dict[str, str] = {}
    for declaration in text.split(";"):
        name, _, value = (part.strip() for part in declaration.partition(":"))
        if name == "font":  # how matplotlib before 3.11 writes size and family
            size = _FONT_SHORTHAND.match(value)
            name, value = "font-size", size["size"] if size else ""
        if value and name != "font-family":
            found[name] = colours.get(value.lower(), value)
    return found


def to_svg(axes: Axes, *, label: str, alone: bool = False) -> str:
    """Render the figure of ``axes``.

    Args:
        axes: made by :func:`panel`, or any of a figure with 72 dots per inch; call this inside
            :func:`style`.
        label: what the picture shows, for those who cannot see it; any text.
        alone: make it a file of its own: of a fixed size, dark on white, in any common font.

    Returns:
        One ``<svg>`` element as text: as wide as its place, named by ``label``, without script,
        style sheet, font, date or outside reference. Same figure, same text.
    """
    figure = axes.get_figure()
    width, height = WIDTH, HEIGHT
    buffer = io.StringIO()
    if isinstance(figure, Figure):
        width, height = (72 * float(inches) for inches in figure.get_size_inches())
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    root = ElementTree.fromstring(buffer.getvalue())
    for child in list(root):
        if child.tag == f"{_SVG}metadata" or child.find(f"{_SVG}style") is not None:
            root.remove(child)  # the style sheet holds "*", which would match the whole page

    colours = {} if alone else _CSS  # as drawn
    label = clean_text(label)
    content = ElementTree.tostring(root, encoding="unicode")
    prefix = "f" + hashlib.sha256(f"{label}\0{content}".encode()).hexdigest()[:8] + "-"
    used = set(_REFERENCE.findall(content))
    used.update(node.get(_XLINK_HREF, "").removeprefix("#") for node in root.iter())
    for node in root.iter():
        node.tag = node.tag.removeprefix(_SVG)
        node.text = node.text if node.tag == "text" else None
        node.tail = None
        attributes = dict(node.attrib)
        node.attrib.clear()
        for name, value in attributes.items():
            if name == "id":
                if value in used:
                    node.set("id", prefix + value)
            elif name == _XLINK_HREF:
                inline = value.startswith("data:")  # a picture, in lines
                there = "".join(value.split()) if inline else f"#{prefix}{value.removeprefix('#')}"
                node.set("href", there)
            elif name == "style":
                rules = _declarations(_REFERENCE.sub(rf"url(#{prefix}\1)", value), colours)
                node.set("style", ";".join(f"{key}:{rule}" for key, rule in rules.items()))
            elif name == "transform" and value.startswith("rotate(-0 "):
                continue
            else:
                node.set(name, _REFERENCE.sub(rf"url(#{prefix}\1)", " ".join(value.split())))

    root.attrib.clear()
    root.attrib.update(
        {
            "xmlns": "http://www.w3.org/2000/svg",
            "viewBox": f"0 0 {width:g} {height:g}",
            "width": "100%",
            "role": "img",
            "aria-label": label,
            "style": f"{_LINES};fill:currentColor;overflow:visible",
        }
    )
    if alone:
        around = (-MARGIN, -MARGIN, width + 2 * MARGIN, height + 2 * MARGIN)
        names = ("x", "y", "width", "height")
        box = {name: f"{value:g}" for name, value in zip(names, around, strict=True)}
        root.attrib.update(
            {
                "viewBox": " ".join(box.values()),
                "width": box["width"],
                "height": box["height"],
                "style": f"{_LINES};fill:{INK};background:#fff;font-family:{_FONTS}",
            }
        )
        # Not every viewer draws the background of the root.
        root.insert(0, ElementTree.Element("rect", box, fill="#fff"))
    title = ElementTree.Element("title")
    title.text = label
    root.insert(0, title)
    return ElementTree.tostring(root, encoding="unicode")
