"""Models held in memory for chat and checks: a few at a time, loaded once, shared by all who ask.

FP16 comes from the model's source, INT4 and INT2 from the store with their weights packed.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import torch

import kernels
from upq import assembly, models
from upq.errors import UserError
from upq.layers import memory_bytes
from upq.memory import keep_freed_memory
from upq.pipeline import compute_dtype, in_compute_dtype
from upq.store import Store

#: Models kept at once: the three precisions of one run, and one more while another run is opened.
KEPT = 4


@dataclass(frozen=True)
class Served:
    """A model ready to answer. size_bytes: as stored; memory_bytes: parameters and buffers as they lie in memory."""

    model: Any
    tokenizer: Any
    precision: str
    label: str
    note: str
    size_bytes: int
    memory_bytes: int
    bits_per_weight: float
    backend: str
    device: str


class Models:
    """The models of one process. `get` may be called from any thread; one model is loaded at a time."""

    def __init__(self, store: Store) -> None:
        keep_freed_memory()
        self.store = store
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._kept: OrderedDict[Hashable, Served] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, run_id: int | None, precision: str, source: str) -> Served:
        """The served model; blocks while it is loaded. Raises UserError as models.load and load_artifact do."""
        key = ("FP16", source) if precision == "FP16" else (precision, run_id)
        with self._lock:
            if key not in self._kept:
                while len(self._kept) >= KEPT:
                    self._kept.popitem(last=False)
                self._kept[key] = self._load(run_id, precision, source)
            self._kept.move_to_end(key)
            return self._kept[key]

    def _load(self, run_id: int | None, precision: str, source: str) -> Served:
        if precision == "FP16":
            return self._fp16(source)
        if run_id is None:
            raise UserError(
                "artifact_not_found",
                f"There is no {precision} model yet.",
                "Start a run in the Quantize tab.",
            )
        return self._packed(run_id, precision)

    def _fp16(self, source: str) -> Served:
        loaded = models.load(source)
        model = in_compute_dtype(loaded.model, self.device)
        size = sum(one.numel() * 2 for one in model.parameters())
        return self._served(model, loaded.tokenizer, "FP16", loaded.info.reference_note, size, 16.0)

    def _packed(self, run_id: int, precision: str) -> Served:
        kept = self.store.load_artifact(run_id, precision)
        model, tokenizer = assembly.assemble(kept, str(self.device), compute_dtype(self.device))
        bits = kept.manifest["bits_per_weight"]
        return self._served(model, tokenizer, precision, "", kept.size_bytes, bits)

    def _served(
        self, model: Any, tokenizer: Any, precision: str, note: str, size: int, bits: float
    ) -> Served:
        dtype = str(model.dtype).removeprefix("torch.")
        backend = f"torch, {dtype}" if precision == "FP16" else f"{kernels.backend()}, {dtype}"
        return Served(
            model=model,
            tokenizer=tokenizer,
            precision=precision,
            label="FP16 reference" if precision == "FP16" else precision,
            note=note,
            size_bytes=size,
            memory_bytes=memory_bytes(model),
            bits_per_weight=bits,
            backend=backend,
            device=str(self.device),
        )
