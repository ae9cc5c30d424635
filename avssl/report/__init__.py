"""The report of a run or of several runs: one HTML page that needs nothing but a browser. Start at page.py."""

from avssl.report.page import write_comparison, write_report

__all__ = ["write_comparison", "write_report"]
