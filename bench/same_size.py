"""One model at the same size twice: made by llama.cpp from FP16, and by us; measured inside llama.cpp and apart.

    python -m bench.same_size --data-dir DIR --run RUN --wikitext wiki.test.raw --json build/bench/same_size.json

llama.cpp's files (bench.llama_files) are made with and without an importance matrix of the run's own training answers.
"KL": the file's decoded weights in float32, on FP16's answers to the run's held-out prompts, as every other figure of a
run; "WikiText-2": perplexity of the same weights. "KL inside": llama.cpp's distributions, with its own rounding of
activations, against those of its FP16 file, on the first tokens of that file's answers. Needs the extra in
requirements-export.txt.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from bench import report
from bench.agreement import ANSWER_TOKENS, Agreement, agreement, asked
from bench.llama_cpp import LlamaCpp
from bench.llama_files import export_of, importance_of, plain_model, quantized, read_into
from upq import data
from upq.config import RunConfig, with_settings
from upq.context import SilentContext
from upq.evaluation import Reference, wikitext
from upq.export import PackedModel
from upq.export.gguf_architecture import config_of
from upq.jobs.exports import model_of
from upq.models import LoadedModel, load
from upq.store import data_dir, open_store

THEIRS = ("Q4_0", "Q4_K_M", "Q2_K", "Q2_0")
#: Training sequences that the importance matrix is counted on, of the answers that FP16 writes for preset `quick`.
CALIBRATION, ROWS = 128, 208


def main() -> None:
    """Make the files, measure all, print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data-dir", help="folder of the runs; else UPQ_HOME")
    parser.add_argument("--run", type=int, required=True, help="our run, not rotated")
    parser.add_argument("--theirs", nargs="*", choices=THEIRS, default=THEIRS)
    parser.add_argument("--prompts", type=int, default=20, help="asked inside llama.cpp")
    parser.add_argument("--wikitext", type=Path, help="the raw test split of WikiText-2")
    parser.add_argument("--chunks", type=int, default=4, help="of 2,048 tokens of WikiText-2")
    parser.add_argument("--threads", type=int, default=1, help="of llama.cpp")
    parser.add_argument("--json", type=Path, help="write the rows here")
    given = parser.parse_args()
    store = open_store(data_dir(given.data_dir))
    few = {"data.max_rows": ROWS, "data.answers_per_prompt": 1, "data.own_prompts": 0}
    config = with_settings(RunConfig.from_values(store.run(given.run).config), few)
    loaded = load(config.model.source, revision=config.model.revision)
    plain = plain_model(loaded)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        context = SilentContext(folder, store.cached_answers, store.save_answers)
        dataset = data.build(config, loaded, context)
        loaded.model.float()
        texts = _texts(loaded, given.wikitext, given.chunks)
        apart = Apart(loaded, plain, dataset.held_out, texts)
        files = {"FP16": export_of(plain, folder / "fp16")}
        calibration = [example.ids for example in dataset.train[:CALIBRATION]]
        files |= _theirs(loaded, plain, given.theirs, calibration, folder)
        for row in store.artifacts(given.run):
            ours = model_of(store, given.run, row.precision)
            files[f"ours {row.precision}"] = export_of(ours, folder / row.precision)
        rows = {label: apart.measured(path) for label, path in files.items()}
        questions = asked(loaded.tokenizer, given.prompts)
        vocabulary = config_of(plain).vocab_size
        found = inside(list(files.values()), questions, vocabulary, given.threads)
        for label, (agrees, speed) in zip(files, found, strict=True):
            rows[label] |= {"KL inside": agrees.kl, "same top": agrees.same_top, "tokens/s": speed}
    table = [{"file": label, **row} for label, row in rows.items()]
    report.show(table)
    report.save(given.json, table, tokens=sum(example.counted for example in dataset.held_out))


def _theirs(
    loaded: LoadedModel,
    plain: PackedModel,
    names: Sequence[str],
    calibration: Sequence[Any],
    folder: Path,
) -> dict[str, Path]:
    files = {}
    importance = importance_of(loaded, calibration) if names else {}
    for name in names:
        files[name] = quantized(plain, name, folder / f"{name}.gguf")
        path = folder / f"{name}-imatrix.gguf"
        files[f"{name}, imatrix"] = quantized(plain, name, path, importance)
    return files


def _texts(loaded: LoadedModel, path: Path | None, limit: int) -> list[list[int]]:
    if path is None:
        return []
    return wikitext.chunks(loaded.tokenizer, wikitext.joined_text(path), limit=limit)


class Apart:
    """Measures the decoded weights of files in the FP16 model's place."""

    def __init__(
        self,
        loaded: LoadedModel,
        plain: PackedModel,
        held_out: list[data.Example],
        texts: list[list[int]],
    ) -> None:
        self._plain, self._texts, self._model = plain, texts, copy.deepcopy(loaded.model)
        self._reference = Reference(loaded.model, held_out, _nothing)

    def measured(self, path: Path) -> dict[str, Any]:
        """Bytes of a file, KL with its interval, top-1 and perplexity on WikiText-2."""
        read_into(self._model, path, self._plain)
        found = self._reference.measure(self._model, _nothing)
        row = {
            "bytes": path.stat().st_size,
            "KL": found.kl,
            "from": found.kl_low,
            "to": found.kl_high,
            "top-1": found.top1,
        }
        if not self._texts:
            return row
        chunks = [wikitext.read_chunk(self._model, ids) for ids in self._texts]
        return row | {"WikiText-2": wikitext.perplexity(chunks)[0]}


def inside(
    files: Sequence[Path], questions: Sequence[Sequence[int]], vocabulary: int, threads: int
) -> Iterator[tuple[Agreement, float]]:
    """How each file agrees with the first of them in llama.cpp, loaded one after the other, and its tokens/s."""
    places: list[list[int]] = []
    wanted: list[torch.Tensor] = []
    for path in files:
        model = LlamaCpp(path, threads)
        places = places or [
            place for ids in questions for place in model.answer_places(ids, ANSWER_TOKENS)
        ]
        found = [model.log_probabilities(ids, vocabulary) for ids in places]
        wanted = wanted or found
        yield agreement(wanted, found), model.tokens_per_s(questions[0])


def _nothing() -> None: ...


if __name__ == "__main__":
    main()
