"""UPQ Studio: FP16 -> INT4 -> INT2 for instruction-tuned language models, and the means to compare."""

__version__ = "0.1.0"
