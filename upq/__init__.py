"""UPQ Studio: FP16 -> INT4 -> INT2 for instruction-tuned language models, and the means to compare."""

import os

__version__ = "0.1.0"

# Read by OpenMP when torch is imported: threads that have nothing to do give their core away instead of spinning on it
# for milliseconds. On two cores a chat beside torch decodes at half the speed without this (docs/results.md).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
