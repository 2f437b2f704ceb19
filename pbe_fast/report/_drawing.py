"""A picture with its words: inside a page as SVG, or as SVG and PNG files of its own."""

import io
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from pbe_fast._files import atomic_path, write_text
from pbe_fast.report._svg import MARGIN, style, to_svg

__all__ = ["Drawing", "write_drawing"]


@dataclass(frozen=True, eq=False)
class Drawing:
    """A figure of 72 dots per inch, and what it shows in words for those who cannot see it."""

    figure: Figure
    label: str

    @classmethod
    def of(cls, axes: Axes, label: str) -> "Drawing":
        """The figure that ``axes`` are in."""
        figure = axes.get_figure()
        if not isinstance(figure, Figure):
            raise TypeError("the axes are in no figure of their own")
        return cls(figure, label)

    @property
    def svg(self) -> str:
        """For a page, whose colours it takes; see :func:`pbe_fast.report._svg.to_svg`."""
        with style():
            return to_svg(self.figure.axes[0], label=self.label)


def write_drawing(drawing: Drawing, path: Path) -> None:
    """Write ``path`` with the suffixes ``.svg`` and ``.png``, each whole or not at all.

    Both are dark on white, whatever they are shown in.
    """
    with style():
        svg = to_svg(drawing.figure.axes[0], label=drawing.label, alone=True)
        write_text(path.with_name(path.name + ".svg"), svg + "\n")
        FigureCanvasAgg(drawing.figure)
        png = io.BytesIO()
        drawing.figure.savefig(png, format="png", dpi=2 * 72, transparent=True)
    words = PngInfo()
    words.add_text("Description", drawing.label.encode("ascii", "replace").decode())
    with Image.open(png) as image, atomic_path(path.with_name(path.name + ".png")) as temporary:
        edge = round(2 * MARGIN)
        framed = Image.new("RGB", (image.width + 2 * edge, image.height + 2 * edge), "white")
        framed.paste(image, (edge, edge), image)
        framed.save(temporary, format="PNG", pnginfo=words, dpi=(144, 144))
