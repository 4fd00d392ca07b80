"""Models held in memory for chat and checks: a few at a time, loaded once, shared by all who ask.

FP16 comes from the model's source, INT4 and INT2 from the store with their weights packed.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from upq.artifact import Artifact, assembly
from upq.config import Precision
from upq.decode import Decoding, Engine, LastReader, Piece, Reader, engine_for, stream
from upq.errors import UserError
from upq.jobs.turns import answering
from upq.models import compute_dtype, keep_freed_memory, loading, place, serving_device
from upq.store import Run, Store

FP16 = Precision.FP16.name
#: Models kept at once: the three precisions of one run, and one more while another run is opened.
KEPT = 4
#: What speeds are measured with: one greedy answer of so many tokens.
TIMED_QUESTION, TIMED_TOKENS = "Explain how rain forms, step by step.", 48


@dataclass(frozen=True)
class Served:
    """A model ready to answer.

    last: what its engine read last for somebody; size_bytes: as stored; load_s: what loading took, seconds.
    """

    last: LastReader
    tokenizer: Any
    precision: str
    label: str
    note: str
    size_bytes: int
    bits_per_weight: float
    load_s: float

    @property
    def engine(self) -> Engine:
        """What computes."""
        return self.last.engine

    def reader(self) -> AbstractContextManager[Reader]:
        """What reads with this model, for a while; it may hold what was read last."""
        return self.last.lent()

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
        """The device that computes, such as cpu or cuda:0."""
        return str(self.engine.device)

    def answer(
        self,
        messages: list[dict[str, str]],
        decoding: Decoding,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Iterator[Piece]:
        """Answer a conversation that somebody reads, piece by piece (upq.decode.stream); background work waits."""
        with answering(), self.reader() as reader:
            yield from stream(reader, self.tokenizer, messages, decoding, should_stop)

    def write(
        self,
        messages: list[dict[str, str]],
        decoding: Decoding,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Iterator[Piece]:
        """The same where nobody reads along: background work does not wait, and what was read last stays held."""
        yield from stream(Reader(self.engine), self.tokenizer, messages, decoding, should_stop)

    def time_alone(self, should_stop: Callable[[], bool]) -> Piece | None:
        """Write the short answer by which speeds are compared; None where it was stopped, or ended too soon.

        Nobody reads it, so background work does not wait.
        """
        asked = [{"role": "user", "content": TIMED_QUESTION}]
        decoding = Decoding(max_new_tokens=TIMED_TOKENS)
        *_, last = self.write(asked, decoding, should_stop)
        return last if last.finish != "cancelled" and last.tokens >= TIMED_TOKENS // 2 else None


class ModelKey(NamedTuple):
    """What tells one model from all others: FP16 its source and revision, a packed model the run that made it."""

    precision: str
    run_id: int | None = None
    source: str = ""
    revision: str | None = None


def model_key(store: Store, run_id: int | None, precision: str, source: str) -> ModelKey:
    """The model that answers for a run in a precision; FP16 is the revision that the run was made of.

    Raises UserError("run_not_found") where that run is gone.
    """
    return key_of(store.run(run_id) if run_id else None, precision, source)


def key_of(run: Run | None, precision: str, source: str) -> ModelKey:
    """The same for a run that was read already."""
    if precision != FP16:
        return ModelKey(precision, run.id if run else None)
    model = run.config.get("model", {}) if run and run.kind == "quantize" else {}
    return ModelKey(precision, source=source, revision=model.get("revision"))


class Models:
    """The models of one process. `get` may be called from any thread; one model is loaded at a time."""

    def __init__(self, store: Store) -> None:
        keep_freed_memory()
        self.store = store
        self.device = serving_device()
        self._kept: OrderedDict[ModelKey, Served] = OrderedDict()
        self._whole: tuple[ModelKey | None, Any, Any] = (None, None, None)
        self._lock = threading.Lock()

    def get(self, run_id: int | None, precision: str, source: str) -> Served:
        """The served model; blocks while it is loaded. Raises UserError as models.load and load_artifact do."""
        key = model_key(self.store, run_id, precision, source)
        with self._lock:
            if key not in self._kept:
                while len(self._kept) >= KEPT:
                    self._kept.popitem(last=False)
                started = time.monotonic()
                served = self._fp16(key) if precision == FP16 else self._packed(key)
                self._kept[key] = replace(served, load_s=time.monotonic() - started)
            self._kept.move_to_end(key)
            return self._kept[key]

    def admit(self, decoding: Decoding) -> None:
        """Look at an answer before it is made. Whoever has this program to themselves may have any."""

    def whole(self, run_id: int | None, precision: str, source: str) -> tuple[Any, Any]:
        """(transformers model in the device's compute dtype, tokenizer), for measurements that need the logits of every
        token. The last one is kept. Raises UserError as `get` does.
        """
        key = model_key(self.store, run_id, precision, source)
        with self._lock:
            if self._whole[0] != key:
                self._whole = (None, None, None)
                self._whole = (key, *self._load_whole(key))
            return self._whole[1:]

    def _load_whole(self, key: ModelKey) -> tuple[Any, Any]:
        if key.precision == FP16:
            loaded = loading.load(key.source, revision=key.revision)
            place(loaded.model, self.device)
            return loaded.model, loaded.tokenizer
        kept = self._artifact(key)
        return assembly.assemble(kept, str(self.device), compute_dtype(self.device))

    def _fp16(self, key: ModelKey) -> Served:
        loaded = loading.load(key.source, revision=key.revision)
        return Served(
            last=LastReader(engine_for(loaded.model, self.device)),
            tokenizer=loaded.tokenizer,
            precision=FP16,
            label=f"{FP16} reference",
            note=loaded.info.reference_note,
            size_bytes=2 * loaded.info.parameters,
            bits_per_weight=float(Precision.FP16.bits),
            load_s=0.0,
        )

    def _artifact(self, key: ModelKey) -> Artifact:
        if key.run_id is None:
            raise UserError(
                "artifact_not_found",
                f"There is no {key.precision} model yet.",
                "Start a run in the Quantize tab.",
            )
        return self.store.load_artifact(key.run_id, key.precision)

    def _packed(self, key: ModelKey) -> Served:
        kept = self._artifact(key)
        model, tokenizer = assembly.assemble(kept)
        return Served(
            last=LastReader(engine_for(model, self.device)),
            tokenizer=tokenizer,
            precision=key.precision,
            label=key.precision,
            note="",
            size_bytes=kept.size_bytes,
            bits_per_weight=kept.manifest["bits_per_weight"],
            load_s=0.0,
        )
