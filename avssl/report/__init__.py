"""The report of a run: one HTML page that needs nothing but a browser. Start at page.py."""

from avssl.report.page import write_report

__all__ = ["write_report"]
