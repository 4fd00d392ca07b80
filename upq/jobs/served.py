"""Models held in memory for chat and checks: a few at a time, loaded once, shared by all who ask.

FP16 comes from the model's source, INT4 and INT2 from the store with their weights packed.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import Any

import torch

from upq.artifact import Artifact, assembly
from upq.config import Precision
from upq.decode import Engine, engine_for
from upq.errors import UserError
from upq.models import compute_dtype, keep_freed_memory, loading, place
from upq.store import Store

FP16 = Precision.FP16.name
#: Models kept at once: the three precisions of one run, and one more while another run is opened.
KEPT = 4


@dataclass(frozen=True)
class Served:
    """A model ready to answer. size_bytes: as stored; load_s: what loading took, seconds."""

    engine: Engine
    tokenizer: Any
    precision: str
    label: str
    note: str
    size_bytes: int
    bits_per_weight: float
    load_s: float

    @property
    def memory_bytes(self) -> int:
        """The weights as they lie in memory."""
        return self.engine.memory_bytes

    @property
    def backend(self) -> str:
        """What computes, for people."""
        return self.engine.backend

    @property
    def device(self) -> str:
        """cpu or cuda:0, say."""
        return str(self.engine.device)


class Models:
    """The models of one process. `get` may be called from any thread; one model is loaded at a time."""

    def __init__(self, store: Store) -> None:
        keep_freed_memory()
        self.store = store
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._kept: OrderedDict[Hashable, Served] = OrderedDict()
        self._whole: tuple[Hashable, Any, Any] = (None, None, None)
        self._lock = threading.Lock()

    def get(self, run_id: int | None, precision: str, source: str) -> Served:
        """The served model; blocks while it is loaded. Raises UserError as models.load and load_artifact do."""
        revision = self._revision(run_id) if precision == FP16 else None
        key = (FP16, source, revision) if precision == FP16 else (precision, run_id)
        with self._lock:
            if key not in self._kept:
                while len(self._kept) >= KEPT:
                    self._kept.popitem(last=False)
                started = time.monotonic()
                one = (
                    self._fp16(source, revision)
                    if precision == FP16
                    else self._packed(run_id, precision)
                )
                self._kept[key] = replace(one, load_s=time.monotonic() - started)
            self._kept.move_to_end(key)
            return self._kept[key]

    def whole(self, run_id: int | None, precision: str, source: str) -> tuple[Any, Any]:
        """(transformers model in the device's compute dtype, tokenizer), for measurements that need the logits of every
        token. The last one is kept. Raises UserError as `get` does.
        """
        with self._lock:
            key = (run_id, precision, source)
            if self._whole[0] != key:
                self._whole = (None, None, None)
                self._whole = (key, *self._load_whole(run_id, precision, source))
            return self._whole[1:]

    def _load_whole(self, run_id: int | None, precision: str, source: str) -> tuple[Any, Any]:
        if precision == FP16:
            loaded = loading.load(source, revision=self._revision(run_id))
            place(loaded.model, self.device)
            return loaded.model, loaded.tokenizer
        kept = self._artifact(run_id, precision)
        return assembly.assemble(kept, str(self.device), compute_dtype(self.device))

    def _revision(self, run_id: int | None) -> str | None:
        """The revision of the base model that a run was made of; None is the default one."""
        run = self.store.run(run_id) if run_id else None
        return run.config["model"]["revision"] if run and run.kind == "quantize" else None

    def _fp16(self, source: str, revision: str | None) -> Served:
        loaded = loading.load(source, revision=revision)
        return Served(
            engine=engine_for(loaded.model, self.device),
            tokenizer=loaded.tokenizer,
            precision=FP16,
            label=f"{FP16} reference",
            note=loaded.info.reference_note,
            size_bytes=2 * loaded.info.parameters,
            bits_per_weight=float(Precision.FP16.bits),
            load_s=0.0,
        )

    def _artifact(self, run_id: int | None, precision: str) -> Artifact:
        if run_id is None:
            raise UserError(
                "artifact_not_found",
                f"There is no {precision} model yet.",
                "Start a run in the Quantize tab.",
            )
        return self.store.load_artifact(run_id, precision)

    def _packed(self, run_id: int | None, precision: str) -> Served:
        kept = self._artifact(run_id, precision)
        model, tokenizer = assembly.assemble(kept)
        return Served(
            engine=engine_for(model, self.device),
            tokenizer=tokenizer,
            precision=precision,
            label=precision,
            note="",
            size_bytes=kept.size_bytes,
            bits_per_weight=kept.manifest["bits_per_weight"],
            load_s=0.0,
        )
