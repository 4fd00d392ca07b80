"""Numbers and names as people read them: sizes, durations, rates, stages and precisions."""

from __future__ import annotations

import math
from collections.abc import Iterable

from upq import config
from upq.context import STAGES

Precision = config.PrecisionName
PRECISIONS = config.PRECISIONS
NO_VALUE = "\u2013"
STAGE_NAMES = {
    "load": "Load",
    "data": "Data",
    "int4": "INT4 block-wise",
    "int4_distill": "INT4 end to end",
    "int2": "INT2 block-wise",
    "int2_distill": "INT2 end to end",
    "pack": "Pack",
    "measure": "Measure",
}
METHOD_NAMES = {
    "rotated_upq": "Rotated UPQ",
    "portable_upq": "Portable UPQ",
    "upq": "UPQ",
    "efficientqat": "EfficientQAT",
    "unisvq": "UniSVQ",
    "gptq": "GPTQ",
    "rtn": "RTN",
}
YEAR_DAYS = 365
BUNDLED_NAME = "SmolLM2-135M-Instruct"


def model_name(source: str) -> str:
    """Name a model source in short: the bundled model by its name, a path by its last part."""
    if source == "bundled":
        return BUNDLED_NAME
    return source.rstrip("/").rsplit("/", 1)[-1] or source


def size(size_bytes: float | None) -> str:
    """Write bytes as decimal kB, MB or GB with three digits at most."""
    if size_bytes is None:
        return NO_VALUE
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size_bytes >= scale:
            value = size_bytes / scale
            return f"{value:.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"
    return f"{size_bytes:.0f} B"


def peak_memory(peak_bytes: int | None, gpu_peak_bytes: int | None) -> str:
    """Write the most memory that a run took, on a GPU as well if it used one: "5.6 GB" or "5.6 GB, GPU 8.5 GB"."""
    gpu = f", GPU {size(gpu_peak_bytes)}" if gpu_peak_bytes else ""
    return f"{size(peak_bytes)}{gpu}"


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


def span(low_s: float, high_s: float) -> str:
    """Write a range of durations as "9 to 12 min", or as one value where both ends read the same."""
    low, high = duration(low_s), duration(high_s)
    if low == high:
        return f"about {low}"
    low_parts, high_parts = low.split(), high.split()
    is_one_unit = len(low_parts) == len(high_parts) == 2 and low_parts[1] == high_parts[1]
    return f"{low_parts[0]} to {high}" if is_one_unit else f"{low} to {high}"


def number(value: float | None, digits: int = 3) -> str:
    """Write a number with so many significant digits, and a dash for nothing."""
    if value is None or not math.isfinite(value):
        return NO_VALUE
    return f"{value:,.0f}" if abs(value) >= 10 ** (digits - 1) else f"{value:.{digits}g}"


def fixed(value: float | None, decimals: int) -> str:
    """Write a number with a fixed count of decimals, for columns that line up."""
    return NO_VALUE if value is None or not math.isfinite(value) else f"{value:.{decimals}f}"


def percent(share: float | None, decimals: int = 1) -> str:
    """Write a share of 0 to 1 as a percentage."""
    return NO_VALUE if share is None else f"{100 * share:.{decimals}f} %"


def plural(count: int, noun: str) -> str:
    """Write a count with its noun, such as "1 prompt" and "60 prompts"."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def in_order(stages: Iterable[str]) -> list[str]:
    """Sort stages as a run goes through them; those of no quantization stay behind, as they are."""
    return sorted(stages, key=lambda name: STAGES.index(name) if name in STAGES else len(STAGES))


def stage_name(stage: str) -> str:
    """Return a stage's name as the stepper shows it."""
    return STAGE_NAMES.get(stage, stage.capitalize())
