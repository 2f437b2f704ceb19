"""Writing a run's report."""

import re
from collections.abc import Collection, Sequence
from pathlib import Path

from pbe_fast._files import write_bytes, write_text
from pbe_fast.errors import RunDirectoryError

__all__ = ["FIGURES_NAME", "REPORT_NAME", "write_report"]

REPORT_NAME = "report.html"
FIGURES_NAME = "figures"
# The names of all plots that any page has as files.
_OURS = re.compile(r"(curves|loss|scores|scan-[0-9]|heat-map-[0-9][0-9.e+-]*)\.(svg|png)")


def write_report(
    run_dir: Path, *, scans: Sequence[Path] = (), features: Path | None = None
) -> Path:
    """Write ``report.html`` and ``figures/`` into a run directory; returns the page's path.

    The page shows what the directory holds: ``metrics.json`` (needed), ``metrics.jsonl``,
    ``suspects.parquet``, ``thumbnails.json``, ``extras.json`` and ``config.yaml`` (each may be
    absent); of a scan ``metrics.json``, ``predictions.parquet`` (needed) and ``config.yaml``.
    Everything read is shown as text, whatever it contains, and pictures are decoded and encoded
    anew. The page is whole without the figures, which are its plots as SVG and PNG; those that an
    earlier page had and this one has not are deleted. Same directory, same bytes.

    Args:
        scans: run directories of ``pbe-fast scan``, whose heat maps the page is to show side by
            side, at the size at which a label gets the largest share.
        features: a run directory of ``pbe-fast features``, whose pictures it is to show. What is
            shown of other runs is kept in ``extras.json``, in place of what it held of that kind;
            so later reports show it too, without those runs.

    Raises:
        RunDirectoryError: a directory or ``metrics.json`` is missing, a file is damaged, or a run
            is of another kind; says which and what to do. An earlier report is then left as it was.
    """
    # Loaded here, as matplotlib takes half a second, and no worker of a fleet draws anything.
    from pbe_fast.report._collect import collect_extras
    from pbe_fast.report._drawing import write_drawing
    from pbe_fast.report._extras import EXTRAS_NAME, parse_extras
    from pbe_fast.report._run import Metrics
    from pbe_fast.report.page import render
    from pbe_fast.report.scan_page import render_scan

    run_dir = Path(run_dir)
    path = run_dir / REPORT_NAME
    metrics = Metrics.load(run_dir)
    extras = None
    if scans or features is not None:
        if metrics.kind == "scan":
            raise RunDirectoryError(
                f"{run_dir}: is a scan, whose page shows no other runs. Give the folder of a "
                "purification or training, and this one as its scan (--scan)."
            )
        extras = collect_extras(run_dir, metrics, scans, features)
    if metrics.kind == "scan":
        page = render_scan(run_dir, metrics)
    else:
        page = render(run_dir, None if extras is None else parse_extras(extras))
    if extras is not None:
        write_bytes(run_dir / EXTRAS_NAME, extras)
    for name, drawing in page.drawings.items():
        write_drawing(drawing, run_dir / FIGURES_NAME / name)
    write_text(path, page.html)
    _delete_stale(run_dir / FIGURES_NAME, page.drawings.keys())
    return path


def _delete_stale(folder: Path, names: Collection[str]) -> None:
    """Delete plots of earlier reports that are none of ``names``, and nothing else.

    A link is never a file that a report wrote, so neither it nor what it leads to is touched.
    """
    if folder.is_symlink() or not folder.is_dir():
        return
    for path in folder.iterdir():
        if (
            _OURS.fullmatch(path.name)
            and path.stem not in names
            and path.is_file()
            and not path.is_symlink()
        ):
            path.unlink()
