"""GGUF, for llama.cpp and what is made of it: codes and scales as they are, in blocks that we write ourselves."""

from __future__ import annotations

import shlex
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy

from upq.export.formats import Offer, Progress, Use, export_differs
from upq.export.gguf_architecture import (
    add_architecture,
    add_general,
    architecture_of,
    config_of,
    context_length,
)
from upq.export.gguf_blocks import encoded
from upq.export.gguf_kinds import F16, Q2_0, Kind
from upq.export.gguf_modelfile import modelfile
from upq.export.gguf_read import Reader
from upq.export.gguf_tensors import Entry, entries_of
from upq.export.gguf_vocabulary import Vocabulary, vocabulary_of
from upq.export.model import PackedModel
from upq.models import load_tokenizer

#: Types that Ollama does not load yet.
NOT_IN_OLLAMA = (Q2_0,)
#: Bytes that a tensor's header takes, with what fills its data up to a multiple of 32, about.
PER_TENSOR = 96


@dataclass(frozen=True)
class _Plan:
    """What is to be written, known before anything is."""

    config: Any
    entries: list[Entry]
    linears: list[Entry]

    @property
    def kind(self) -> Kind:
        """The type of most of the linears."""
        counts: Counter[Kind] = Counter()
        for entry in self.linears or self.entries:
            counts[entry.kind] += entry.size_bytes
        return counts.most_common(1)[0][0]

    @property
    def rows(self) -> int:
        """Rows of the embedding."""
        return next(entry.shape[0] for entry in self.entries if entry.name == "token_embd.weight")

    @property
    def runs_in_ollama(self) -> bool:
        """Whether Ollama knows all types."""
        return not any(entry.kind in NOT_IN_OLLAMA for entry in self.entries)


class Gguf:
    """upq.export.formats.Format: one file, and a Modelfile for Ollama."""

    key, title = "gguf", "GGUF"
    runs_in = "llama.cpp, Ollama, LM Studio"

    def offer(self, model: PackedModel) -> Offer:
        """Exact wherever a type of GGUF holds the grid; what is rounded to float16 is named with its reason."""
        plan = _plan(model)
        vocabulary = vocabulary_of(model, plan.rows)
        tensors = sum(entry.size_bytes + PER_TENSOR for entry in plan.entries)
        bits = 8 * sum(entry.size_bytes for entry in plan.linears)
        weights = sum(entry.shape[0] * entry.shape[1] for entry in plan.linears)
        exactness = "; ".join(_holdings(plan))
        return Offer(tensors + vocabulary.size_bytes, bits / max(1, weights), exactness)

    def write(self, model: PackedModel, folder: Path, progress: Progress) -> None:
        """The file tensor by tensor, and the Modelfile where Ollama can load the file."""
        plan = _plan(model)
        vocabulary = vocabulary_of(model, plan.rows)
        path = folder / _file_name(model, plan)
        writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[architecture_of(plan.config)])
        try:
            add_general(writer, model, plan.kind.file_type)
            add_architecture(writer, plan.config, plan.rows)
            vocabulary.add_to(writer)
            _write_tensors(writer, plan.entries, progress)
        finally:
            writer.close()
        if plan.runs_in_ollama:
            _write_modelfile(model, plan, vocabulary, path)

    def check(self, model: PackedModel, folder: Path, progress: Progress) -> str:
        """Every tensor is the artifact's, or where its type could not hold it, the artifact's in float16."""
        plan = _plan(model)
        reader = Reader(folder / _file_name(model, plan))
        unknown = reader.stored.keys() - {entry.name for entry in plan.entries}
        if unknown:
            raise export_differs(f"{min(unknown)} is not a tensor of the artifact.")
        rounding = 0.0
        for done, entry in enumerate(plan.entries):
            rounding = max(rounding, _compared(reader, entry, model))
            progress((done + 1) / len(plan.entries))
        count, rounded = len(plan.entries), sum(bool(entry.rounded) for entry in plan.entries)
        if not rounded:
            return f"read back: all {count} tensors decode to exactly what the artifact holds"
        return (
            f"read back: {count - rounded} of {count} tensors decode to exactly what the artifact holds; {rounded} are"
            f" rounded to float16, by at most {rounding:.1g} of the largest weight of their row"
        )

    def uses(self, model: PackedModel) -> list[Use]:
        """What to type in llama.cpp, Ollama and LM Studio."""
        plan = _plan(model)
        file = shlex.quote(_file_name(model, plan))
        name = shlex.quote(f"{model.name}-{plan.kind.name}".lower())
        uses = [Use("llama.cpp", f"llama-server -m {file}")]
        if plan.runs_in_ollama:
            uses.append(Use("Ollama", f"ollama create {name} -f Modelfile && ollama run {name}"))
        place = shlex.quote(f"upq-studio/{model.name}")
        uses.append(Use("LM Studio", f"lms import {file} --user-repo {place} -y -c"))
        return uses


def _plan(model: PackedModel) -> _Plan:
    config = config_of(model)
    entries = entries_of(model, config)
    return _Plan(config, entries, [entry for entry in entries if entry.module in model.linears])


def _file_name(model: PackedModel, plan: _Plan) -> str:
    return f"{model.name}-{plan.kind.name}.gguf"


def _holdings(plan: _Plan) -> list[str]:
    """A phrase for each type that packed layers are written in."""
    found: dict[tuple[Kind, str], list[Entry]] = {}
    for entry in plan.entries:
        if entry.module:
            found.setdefault((entry.kind, entry.rounded), []).append(entry)
    return [
        f"{_counted(entries)} as {kind.name} at {kind.bits:g} bits, "
        + (f"rounded to float16 ({reason})" if reason else "exactly")
        for (kind, reason), entries in found.items()
    ]


def _counted(entries: list[Entry]) -> str:
    return entries[0].module if len(entries) == 1 else f"{len(entries)} layers"


def _write_tensors(writer: gguf.GGUFWriter, entries: list[Entry], progress: Progress) -> None:
    """The headers of all tensors, then one after the other as it is encoded."""
    for entry in entries:
        number: Any = entry.kind.number  # gguf-py may have no name for it, and packs the number
        kind = numpy.dtype(
            numpy.float32
        )  # of the values, so that the shape counts them and not bytes
        writer.add_tensor_info(entry.name, entry.shape, kind, entry.size_bytes, number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for done, entry in enumerate(entries):
        writer.write_tensor_data(encoded(entry.content(), entry.kind))
        progress((done + 1) / len(entries))


def _write_modelfile(model: PackedModel, plan: _Plan, vocabulary: Vocabulary, path: Path) -> None:
    tokenizer = load_tokenizer(model.artifact.files)
    text = modelfile(path.name, tokenizer, vocabulary.stops, context_length(plan.config))
    path.with_name("Modelfile").write_text(text, encoding="utf-8")


def _compared(reader: Reader, entry: Entry, model: PackedModel) -> float:
    """How far a tensor is from the artifact's, as a share of its row's largest weight: 0 unless it had to be rounded.

    Raises UserError("export_differs").
    """
    stored = reader.stored.get(entry.name)
    if stored is None or stored.kind != entry.kind or stored.shape != entry.shape:
        raise export_differs(f"{entry.name} is missing, or of another shape or type.")
    wanted, found = entry.wanted(model).numpy(), stored.decoded()
    expected = wanted.astype(numpy.float16) if entry.rounded else wanted
    if not numpy.array_equal(found, expected):
        raise export_differs(f"{entry.name} is not what the artifact holds.")
    if not entry.rounded:
        return 0.0
    assert entry.kind == F16
    largest = numpy.abs(wanted).max(-1, keepdims=True)
    return float((numpy.abs(found - wanted) / numpy.where(largest > 0, largest, 1)).max())
