"""Decoding on this CPU as the chat does it: tokens per second, prompt reading, batches, loading and memory.

python -m bench.cpu_decode --json decode.json --plot decode.svg

INT4 and INT2 are artifacts of method rtn, made on the way: speed does not depend on how the codes were chosen. Rotated
ones are the same codes with factors and Hadamards of 64 around every matrix: they show what those cost, and are no
sensible models. Rivals in the same run: transformers' eager forward in bfloat16 and float32, and llama.cpp on the same
GGUF file where llama-cpp-python is installed. Everything is greedy and on all cores; the runners take turns, round by
round.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch

from bench import report
from kernels.transform import Transform, hadamard_block
from upq.artifact import assembly
from upq.config import preset, with_settings
from upq.decode import Engine, NativeEngine, Session, TransformersEngine
from upq.jobs import Models, follow
from upq.layers import PackedLinear, packed_layers, replace_module
from upq.models import load, resolve
from upq.models.source import BUNDLED
from upq.store import Store, open_store

CONTEXTS = (128, 1024, 4096)
BATCHES = (1, 4, 16)
NEW_TOKENS = 128
PROMPT = 512
ROUNDS = 3
ROTATION = 64  # the largest Hadamard block


class Runner(Protocol):
    """Reads a prompt of some length and continues it greedily."""

    def read(self, tokens: int) -> float:
        """Seconds for a prompt."""
        ...

    def write(self, context: int, batch: int, tokens: int) -> float:
        """Seconds for `tokens` steps of `batch` sequences behind `context` tokens each."""
        ...


class EngineRunner:
    """One of our engines."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def read(self, tokens: int) -> float:
        session = self.engine.session(1, tokens + 1)
        started = time.perf_counter()
        session.prefill(0, prompt(tokens))
        return time.perf_counter() - started

    def write(self, context: int, batch: int, tokens: int) -> float:
        session = self.engine.session(batch, context + tokens + 1)
        last = [int(session.prefill(row, prompt(context)).argmax()) for row in range(batch)]
        rows = list(range(batch))
        started = time.perf_counter()
        for _ in range(tokens):
            last = best(session, rows, last)
        return time.perf_counter() - started


def best(session: Session, rows: list[int], last: list[int]) -> list[int]:
    """The greedy next tokens."""
    return session.step(rows, last).numpy().argmax(-1).tolist()


class LlamaCpp:
    """llama.cpp through llama-cpp-python, one sequence at a time."""

    def __init__(self, file: Path) -> None:
        threads = torch.get_num_threads()
        self.model = importlib.import_module("llama_cpp").Llama(  # an optional rival
            str(file),
            n_threads=threads,
            n_threads_batch=threads,
            n_ctx=max(CONTEXTS) + NEW_TOKENS + 1,
            verbose=False,
        )

    def read(self, tokens: int) -> float:
        self.model.reset()
        started = time.perf_counter()
        self.model.eval(prompt(tokens))
        return time.perf_counter() - started

    def write(self, context: int, batch: int, tokens: int) -> float:
        assert batch == 1
        self.read(context)
        started = time.perf_counter()
        for _ in range(tokens):
            self.model.eval([self.model.sample(temp=0.0)])
        return time.perf_counter() - started


def prompt(tokens: int) -> list[int]:
    """Token ids that every tokenizer of this size has."""
    return [100 + index % 1000 for index in range(tokens)]


def main() -> None:
    """Measure, print tables, write JSON and a plot."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--plot", type=Path, help="draw tokens/s of one sequence here, as SVG")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        runners, loading = make_runners(Path(folder))
        report.show(loading)
        rows = list(measure(runners))
    report.show(rows)
    for line in verdicts(rows, loading):
        sys.stdout.write(line + "\n")
    report.save(options.json, rows, loading=loading, rounds=ROUNDS, new_tokens=NEW_TOKENS)
    if options.plot:
        one = [row for row in rows if row["batch"] == 1 and row["context"]]
        report.draw_bars(options.plot, one, ("context",), "runner", "tokens/s")


def make_runners(folder: Path) -> tuple[dict[str, Runner], list[dict[str, Any]]]:
    """Everything that is measured, by name, and what loading it took."""
    runners: dict[str, Runner] = {}
    loading: list[dict[str, Any]] = []
    for bits in (8, 16):
        served = Models(rounded_to_nearest(folder / str(bits), bits))
        for precision in ("FP16", "INT4", "INT2") if bits == 8 else ("INT4", "INT2"):
            one = served.get(1, precision, BUNDLED)
            name = precision if bits == 8 else f"{precision}, 16-bit head"
            runners[name] = EngineRunner(one.engine)
            loading.append(
                {
                    "model": name,
                    "load s": one.load_s,
                    "in memory MB": one.engine.memory_bytes / 1e6,
                    "stored MB": one.size_bytes / 1e6,
                    "backend": one.engine.backend,
                }
            )
    for precision, sides in (("INT4", 1), ("INT2", 1), ("INT2", 2)):
        model, _ = assembly.assemble(open_store(folder / "8").load_artifact(1, precision))
        rotate(model, sides)
        name = f"{precision}, rotated {'inputs' if sides == 1 else 'inputs and outputs'}"
        runners[name] = EngineRunner(NativeEngine(model))
    exact, _ = assembly.assemble(open_store(folder / "8").load_artifact(1, "INT2"))
    runners["INT2, exact activations"] = EngineRunner(NativeEngine(exact, exact=True))
    runners |= rivals()
    return runners, loading


def rotate(model: Any, sides: int) -> None:
    """Surround every packed matrix of the decoder blocks with signs and Hadamards of its inputs, or of both sides."""
    blocks = model.model.layers
    for name, layer in list(packed_layers(blocks)):
        rows, columns = layer.packed.shape
        transform = Transform(hadamard_block(columns, ROTATION), scale_in=torch.ones(columns))
        if sides == 2:
            block = hadamard_block(rows, ROTATION)
            transform = replace(transform, block_out=block, scale_out=torch.ones(rows))
        packed = replace(layer.packed, transform=transform)
        replace_module(blocks, name, PackedLinear(packed, layer.bias))


def rounded_to_nearest(folder: Path, embedding_bits: int) -> Store:
    """A store whose run 1 is the bundled model rounded to nearest."""
    folder.mkdir()
    config = with_settings(preset("smoke", "rtn"), {"embedding_bits": embedding_bits})
    run = follow.run_and_wait(folder, lambda store: store.enqueue(config), lambda _: None)
    if run.state != "done":
        sys.exit(f"{run.error_message} {run.error_hint}".strip())
    return open_store(folder)


def rivals() -> dict[str, Runner]:
    """Other people's ways to decode the same model."""
    found: dict[str, Runner] = {}
    for dtype, name in ((torch.bfloat16, "bfloat16"), (torch.float32, "float32")):
        model: Any = load(BUNDLED, dtype=dtype).model
        found[f"transformers, {name}"] = EngineRunner(TransformersEngine(model))
    place = resolve(BUNDLED)
    if importlib.util.find_spec("llama_cpp") and place.kind == "gguf" and place.path:
        found["llama.cpp, Q4_1"] = LlamaCpp(place.path)
    else:
        sys.stdout.write("llama-cpp-python is not installed: no comparison with llama.cpp\n")
    return found


def measure(runners: dict[str, Runner]) -> Iterator[dict[str, Any]]:
    """One row for each runner and task; context 0 is reading a prompt of PROMPT tokens."""
    for context, batch, tokens in tasks():
        able = [name for name in runners if takes_part(name, context, batch)]
        seconds: dict[str, list[float]] = {name: [] for name in able}
        for _ in range(ROUNDS if context in (0, CONTEXTS[0]) else 1):
            for name in able:
                runner = runners[name]
                took = runner.write(context, batch, tokens) if context else runner.read(tokens)
                seconds[name].append(took)
        for name in able:
            rate = batch * tokens / statistics.median(seconds[name])
            yield {
                "task": f"write behind {context}" if context else f"read {tokens}",
                "context": context,
                "batch": batch,
                "runner": name,
                "tokens/s": rate,
            }


def tasks() -> Iterator[tuple[int, int, int]]:
    """(context, batch, tokens), context 0 for reading."""
    yield 0, 1, PROMPT
    for context in CONTEXTS:
        for batch in BATCHES:
            if context * batch <= 16_384:  # beyond, filling the cache takes longer than it tells
                yield context, batch, NEW_TOKENS if context == CONTEXTS[0] and batch == 1 else 32


def takes_part(name: str, context: int, batch: int) -> bool:
    """Rivals and variants only where their figure is compared with ours."""
    if name.startswith("llama.cpp"):
        return batch == 1
    if name.startswith("transformers") or "," in name:
        return context in (0, CONTEXTS[0]) and (batch == 1 or "head" in name)
    return True


def verdicts(rows: list[dict[str, Any]], loading: list[dict[str, Any]]) -> Iterator[str]:
    """The targets, and whether this run reaches them."""
    rate = {(row["context"], row["batch"], row["runner"]): row["tokens/s"] for row in rows}
    at = {name: rate[CONTEXTS[0], 1, name] for _, batch, name in rate if batch == 1}
    eager = max(value for name, value in at.items() if name.startswith("transformers"))
    together = {name: rate[CONTEXTS[0], 16, name] / at[name] for name in ("FP16", "INT4", "INT2")}
    packed, reading = min(at["INT4"], at["INT2"]), min(rate[0, 1, "INT4"], rate[0, 1, "INT2"])
    loaded = next(row["load s"] for row in loading if row["model"] == "INT2")
    claims = {
        "INT4 and INT2 write at least 4 times as fast as transformers": packed >= 4 * eager,
        "INT2 writes no slower than INT4": at["INT2"] >= at["INT4"],
        f"INT4 and INT2 read {PROMPT} tokens no slower than FP16": reading >= rate[0, 1, "FP16"],
        "INT2 loads within 2 s": loaded < 2,
    }
    for name, times in together.items():
        claims[f"{name}: 16 together write at least 5 times as fast as one ({times:.1f})"] = (
            times >= 5
        )
    if llama := at.get("llama.cpp, Q4_1"):
        claims["INT4 and INT2 write at least as fast as llama.cpp"] = packed >= llama
    for claim, holds in claims.items():
        yield f"{'holds' if holds else 'FAILS'}: {claim}"


if __name__ == "__main__":
    main()
