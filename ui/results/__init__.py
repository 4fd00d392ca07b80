"""The Results tab: runs compared, and the report."""

from ui.results.comparison import MAX_RUNS, gather
from ui.results.render_report import report

__all__ = ["MAX_RUNS", "gather", "report"]
