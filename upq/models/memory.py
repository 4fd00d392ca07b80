"""Memory of the process that trains.

glibc hands every freed tensor of a few megabytes back to the system and faults it in again at the next
allocation, page by page. Training allocates such tensors thousands of times a second and runs much faster when
they are kept.
"""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h
_KEEP_BYTES = 2**30


def keep_freed_memory() -> bool:
    """Tell glibc to keep freed blocks of up to a gigabyte; returns whether this system could be told."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _KEEP_BYTES) and mallopt(_TRIM_THRESHOLD, _KEEP_BYTES))
