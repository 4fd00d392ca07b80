"""The Export tab: a model of a run made into files of other programs."""

from ui.export.offers import made, offers_of, told

__all__ = ["made", "offers_of", "told"]
