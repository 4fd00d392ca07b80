"""UPQ Studio: FP16 -> INT4 -> INT2 for instruction-tuned language models, and the means to compare."""

import os

__version__ = "0.1.0"

# Read by OpenMP when torch is imported: its idle threads give their core away after some ten microseconds, not after
# milliseconds in which the C kernels would have to share it. To do so at once would make training twice as slow.
os.environ.setdefault("GOMP_SPINCOUNT", "20000")
