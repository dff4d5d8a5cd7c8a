"""Report pages: figures, HTML blocks, and the pages of audits and index comparisons."""

from candid.report.figures import (
    Curve,
    calibration,
    interval_bars,
    log_log,
    log_y,
    rank_frequency,
)
from candid.report.html import (
    Figure,
    Heading,
    Paragraph,
    Table,
    render_page,
    write_report,
)

__all__ = [
    "Curve",
    "Figure",
    "Heading",
    "Paragraph",
    "Table",
    "calibration",
    "interval_bars",
    "log_log",
    "log_y",
    "rank_frequency",
    "render_page",
    "write_report",
]
