"""Writing a run's report."""

from pathlib import Path

from pbe_fast._files import write_text

__all__ = ["FIGURES_NAME", "REPORT_NAME", "write_report"]

REPORT_NAME = "report.html"
FIGURES_NAME = "figures"


def write_report(run_dir: Path) -> Path:
    """Write ``report.html`` and ``figures/`` into a run directory; returns the page's path.

    The page shows what the directory holds: ``metrics.json`` (needed), ``metrics.jsonl``,
    ``suspects.parquet``, ``thumbnails.json`` and ``config.yaml`` (each may be absent); of a scan
    ``metrics.json``, ``predictions.parquet`` (needed) and ``config.yaml``. Everything read is shown
    as text, whatever it contains, and pictures are decoded and encoded anew. The page is whole
    without the figures, which are the plots of a training or purification as SVG and PNG. Same
    directory, same bytes.

    Raises:
        RunDirectoryError: the directory or ``metrics.json`` is missing, or a file is damaged;
            says which and what to do. An earlier report is then left as it was.
    """
    # Loaded here, as matplotlib takes half a second, and no worker of a fleet draws anything.
    from pbe_fast.report._drawing import write_drawing
    from pbe_fast.report._run import Metrics
    from pbe_fast.report.page import render
    from pbe_fast.report.scan_page import render_scan

    run_dir = Path(run_dir)
    path = run_dir / REPORT_NAME
    metrics = Metrics.load(run_dir)
    page = render_scan(run_dir, metrics) if metrics.kind == "scan" else render(run_dir)
    for name, drawing in page.drawings.items():
        write_drawing(drawing, run_dir / FIGURES_NAME / name)
    write_text(path, page.html)
    return path
