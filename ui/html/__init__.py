"""Safe HTML and what every tab draws with: parts, charts, axes, words."""

from ui.html.axes import Point, linear_axis, log_axis
from ui.html.charts import Dot, Key, Series, block_chart, line_chart, scatter
from ui.html.markup import Html, join, tag
from ui.html.origin import commit_words, machine_words
from ui.html.page import standalone
from ui.html.parts import fact, notice, run_name, table
from ui.html.rich_text import GrowingMarkdown, markdown
from ui.html.run_panel import stage_seconds
from ui.html.words import (
    BUNDLED_NAME,
    METHOD_NAMES,
    PRECISIONS,
    Precision,
    in_order,
    model_name,
    number,
    peak_memory,
    plural,
    span,
    stage_name,
)
from upq.units import NO_VALUE, duration, fixed, percent, size

__all__ = [
    "BUNDLED_NAME",
    "METHOD_NAMES",
    "NO_VALUE",
    "PRECISIONS",
    "Dot",
    "GrowingMarkdown",
    "Html",
    "Key",
    "Point",
    "Precision",
    "Series",
    "block_chart",
    "commit_words",
    "duration",
    "fact",
    "fixed",
    "in_order",
    "join",
    "line_chart",
    "linear_axis",
    "log_axis",
    "machine_words",
    "markdown",
    "model_name",
    "notice",
    "number",
    "peak_memory",
    "percent",
    "plural",
    "run_name",
    "scatter",
    "size",
    "span",
    "stage_name",
    "stage_seconds",
    "standalone",
    "table",
    "tag",
]
