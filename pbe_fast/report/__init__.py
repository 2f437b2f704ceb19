"""The report of a run: figures and one self-contained HTML page."""

from pbe_fast.report._scan_words import verdict_words
from pbe_fast.report.writing import REPORT_NAME, write_report

__all__ = ["REPORT_NAME", "verdict_words", "write_report"]
