"""What is measured of a quantized model, loaded as the chat loads it: its fidelity to the FP16 model, and its sizes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from upq.artifact import Artifact
from upq.artifact.assembly import assemble
from upq.config import Precision
from upq.data import Example
from upq.decode import native_engine
from upq.evaluation import Reference
from upq.layers import memory_bytes
from upq.models import serving_device

FP16 = Precision.FP16


class Yardstick:
    """The FP16 model and its held-out answers, against which every artifact made of it is measured.

    teacher: the FP16 model in compute dtype, on the device that measures. check: called between batches, may raise.
    """

    def __init__(self, teacher: Any, held_out: list[Example], check: Callable[[], None]) -> None:
        started = time.monotonic()
        self.teacher, self.check = teacher, check
        self.reference = Reference(teacher, held_out, check)
        self._reading_s = time.monotonic() - started

    def fp16_row(self) -> dict[str, Any]:
        """The FP16 model as a row for RunContext.save_measurements; its seconds are those of reading the answers."""
        found = self.reference.measure(self.teacher, self.check)
        size = 2 * sum(parameter.numel() for parameter in self.teacher.parameters())
        fidelity = replace(found, seconds=found.seconds + self._reading_s)
        return fidelity.row(FP16.name, FP16.name, bits_per_weight=float(FP16.bits), size_bytes=size)

    def assembled(self, artifact: Artifact) -> Any:
        """The artifact's model, on the device and in the type in which it is measured."""
        return assemble(artifact, str(self.teacher.device), self.teacher.dtype)[0]

    def row(
        self, label: str, artifact: Artifact, model: Any, *, answers: bool = False
    ) -> dict[str, Any]:
        """Fidelity and sizes of an artifact and its `assembled` model as a row for RunContext.save_measurements.

        answers: the artifact is one that answers in the chat; where an engine in C does that, the row has what this
        engine gives as well. Raises UserError("diverged") where the model or the engine gives no number.
        """
        sizes = {
            "bits_per_weight": artifact.manifest["bits_per_weight"],
            "size_bytes": artifact.size_bytes,
            "memory_bytes": memory_bytes(model),
        }
        engine = native_engine(assemble(artifact)[0], serving_device()) if answers else None
        if engine is None:
            return self.reference.measure(model, self.check).row(label, artifact.precision, **sizes)
        found, served = self.reference.measure_both(model, engine, self.check)
        return found.row(label, artifact.precision, **sizes, **served.as_served(engine))
