"""The report of an experiment: one HTML file that needs nothing else, to read, print, send and keep.

``page`` puts it together; the other modules make its parts: ``many`` decides what is shown of more runs than have a look of
their own, ``steps``, ``layers``, ``machine`` and ``timeline`` draw, ``recipes`` and ``facts`` tell what was trained and where.
"""

from altgrad_core.analysis.report.page import REPORT, render, write_report

__all__ = ["REPORT", "render", "write_report"]
