"""Artifacts that were made on another machine, measured on this one, beside round-to-nearest in the same form."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from upq.artifact import Artifact
from upq.artifact.assembly import build
from upq.config import Precision, RunConfig, preset
from upq.context import SilentContext
from upq.data import Dataset, held_out
from upq.models import LoadedModel, placed_copy
from upq.quantize import Yardstick
from upq.quantize.pipeline import prepare
from upq.quantize.stages import Source, Work, round_to_nearest


def measured(
    config: RunConfig, artifacts: Mapping[str, Artifact], loaded: LoadedModel
) -> list[dict[str, Any]]:
    """Rows of a run's measurements: FP16, the artifacts by precision, and round-to-nearest in each one's form.

    The held-out answers are those of the bundled prompts, written by the FP16 model on this machine, as in all presets.
    """
    device = prepare(config)
    given = Source(loaded, placed_copy(loaded.model, device))
    with tempfile.TemporaryDirectory() as folder:
        context = SilentContext(Path(folder))
        answers = held_out(preset("quick"), replace(loaded, model=given.placed), context)
        yardstick = Yardstick(given.placed, answers, context.check)
        rows = [yardstick.fp16_row()]
        for name, artifact in artifacts.items():
            rows.append(yardstick.row(name, artifact, yardstick.assembled(artifact), answers=True))
        for name, artifact in artifacts.items():
            bits = {layer: entry["bits"] for layer, entry in artifact.manifest["layers"].items()}
            layers = [layer for layer, width in bits.items() if width < 8]
            wide = frozenset(layer for layer in layers if bits[layer] > Precision[name].bits)
            work = Work(config, context, given, None, Dataset([], answers), layers, wide)
            nearest = round_to_nearest(work, Precision[name])
            made = build(name, nearest.packed, loaded, config, nearest.plain)
            rows.append(yardstick.row(f"RTN {name}", made, yardstick.assembled(made)))
    return rows
