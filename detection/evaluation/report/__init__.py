"""The report: one page that tells what a detector's numbers are, what they are made of, and what to improve."""

from detection.evaluation.report.page import SECTIONS, write_report
from detection.evaluation.report.run import Run

__all__ = ["SECTIONS", "Run", "write_report"]
