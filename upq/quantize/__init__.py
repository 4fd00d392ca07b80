"""The story of a run: it sees a context, never the database."""

from upq.quantize.measure import Yardstick

__all__ = ["Yardstick"]
