"""Numbers and names as people read them: ranges, shares, counts, stages and precisions."""

from __future__ import annotations

import math
from collections.abc import Iterable

from upq import config
from upq.context import STAGES
from upq.units import NO_VALUE, duration, size

Precision = config.PrecisionName
PRECISIONS = config.PRECISIONS
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
BUNDLED_NAME = "SmolLM2-135M-Instruct"


def model_name(source: str) -> str:
    """Name a model source in short: the bundled model by its name, a path by its last part."""
    if source == "bundled":
        return BUNDLED_NAME
    return source.rstrip("/").rsplit("/", 1)[-1] or source


def peak_memory(peak_bytes: int | None, gpu_peak_bytes: int | None) -> str:
    """Write the most memory that a run took, on a GPU as well if it used one: "5.6 GB" or "5.6 GB, GPU 8.5 GB"."""
    gpu = f", GPU {size(gpu_peak_bytes)}" if gpu_peak_bytes else ""
    return f"{size(peak_bytes)}{gpu}"


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


def plural(count: int, noun: str) -> str:
    """Write a count with its noun, such as "1 prompt" and "60 prompts"."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def in_order(stages: Iterable[str]) -> list[str]:
    """Sort stages as a run goes through them; those of no quantization stay behind, as they are."""
    return sorted(stages, key=lambda name: STAGES.index(name) if name in STAGES else len(STAGES))


def stage_name(stage: str) -> str:
    """Return a stage's name as the stepper shows it."""
    return STAGE_NAMES.get(stage, stage.capitalize())
