"""A picture with its words: inside a page as SVG, or as SVG and PNG files of its own."""

from dataclasses import dataclass
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pbe_fast._files import atomic_path, write_text
from pbe_fast.report._svg import style, to_svg

__all__ = ["Drawing", "write_drawing"]


@dataclass(frozen=True, eq=False)
class Drawing:
    """A figure of 72 dots per inch, and what it shows in words for those who cannot see it."""

    figure: Figure
    label: str

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
        with atomic_path(path.with_name(path.name + ".png")) as temporary:
            FigureCanvasAgg(drawing.figure)
            drawing.figure.patch.set_visible(True)
            drawing.figure.savefig(
                temporary, format="png", dpi=144, facecolor="white",
                metadata={"Description": drawing.label.encode("ascii", "replace").decode()},
            )  # fmt: skip
