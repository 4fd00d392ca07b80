"""Numbers, bytes, seconds and settings as people read them, on a page or in a terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping

#: What stands where nothing is known.
NO_VALUE = "\u2013"
YEAR_DAYS = 365


def size(size_bytes: float | None) -> str:
    """Write bytes as decimal kB, MB or GB with three digits at most."""
    if size_bytes is None:
        return NO_VALUE
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size_bytes >= scale:
            value = size_bytes / scale
            return f"{value:.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"
    return f"{size_bytes:.0f} B"


def duration(seconds: float | None) -> str:
    """Write seconds as "45 ms", "0.4 s", "12 s", "3 min 10 s", "2 h 5 min", "3 days" or "4 years"."""
    if seconds is None:
        return NO_VALUE
    if 0 < seconds < 0.0995:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest} s"
    if minutes < 60:
        return f"{minutes} min {rest} s" if minutes < 10 and rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days = hours // 24
    return f"{days} days" if days < 2 * YEAR_DAYS else f"{days // YEAR_DAYS} years"


def fixed(value: float | None, decimals: int) -> str:
    """Write a number with a fixed count of decimals, for columns that line up."""
    return NO_VALUE if value is None or not math.isfinite(value) else f"{value:.{decimals}f}"


def percent(share: float | None, decimals: int = 1) -> str:
    """Write a share of 0 to 1 as a percentage."""
    return NO_VALUE if share is None else f"{100 * share:.{decimals}f} %"


def settings(values: Mapping[str, object]) -> str:
    """Write settings by name as "temperature 0, top p 1, seed 0"."""
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in values.items())
