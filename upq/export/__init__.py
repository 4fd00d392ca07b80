"""Ways out: an artifact as files that other programs load, checked before anybody sees them."""

from upq.export.card import Results
from upq.export.formats import Format, Offer, Progress, Use
from upq.export.make import FORMATS, Exported, export, format_named
from upq.export.model import PackedModel, opened
from upq.export.origin import CARD, file_name

__all__ = [
    "CARD",
    "FORMATS",
    "Exported",
    "Format",
    "Offer",
    "PackedModel",
    "Progress",
    "Results",
    "Use",
    "export",
    "file_name",
    "format_named",
    "opened",
]
