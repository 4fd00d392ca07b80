"""Whether a text is a regular expression. To find out is work that can take hours, so upq.evaluation.ifeval runs this
file in a process that can be killed (upq.killable); it imports nothing of ours.
"""

from __future__ import annotations

import re
import warnings


def problem(pattern: str) -> str:
    """What is wrong with it; empty where it can be used."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            re.compile(pattern)
        except (re.error, OverflowError, RecursionError, MemoryError) as error:
            return str(error) or type(error).__name__
    return ""
