"""Ways out: an artifact as files that other programs load, checked before anybody sees them."""

from upq.export.formats import Format, Offer, Progress, Use
from upq.export.make import FORMATS, Exported, export, format_named
from upq.export.model import PackedModel, opened

__all__ = [
    "FORMATS",
    "Exported",
    "Format",
    "Offer",
    "PackedModel",
    "Progress",
    "Use",
    "export",
    "format_named",
    "opened",
]
