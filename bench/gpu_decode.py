"""Tokens per second of decoding on an NVIDIA GPU, through the engine that serves the chat: FP16, INT4 and INT2.

python -m bench.gpu_decode --json decode.json --plot decode.svg
python -m bench.gpu_decode --tiny      # the same code on tiny shapes

The weights are random, so no model is needed; speed and memory do not depend on their values. A model is built layer by
layer on the GPU, a packed one without its 16-bit weights ever being there. INT4 and INT2 have the forms that runs
make, with embedding and head in 8 bits; INT2 is there on the odd grid as well. Every step is one CUDA graph, in all
columns. Packed layers that read the same activations are one product, those in 16 bits are not.
"""

from __future__ import annotations

import argparse
import functools
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from bench import random_weights, report
from kernels.packing import PackedWeight
from kernels.transform import Transform, hadamard_block
from upq.decode import ServedLinear, TransformersEngine
from upq.layers import PackedEmbedding, PackedLinear, replace_module

MODELS = {
    "SmolLM2-135M": LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
    ),
    "Llama-3.1-8B": LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=8192,
    ),
}
TINY = LlamaConfig(
    vocab_size=256,
    hidden_size=128,
    intermediate_size=256,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
)
CONTEXTS = (128, 1024, 4096)
BATCHES = (1, 4, 16)
#: What makes a random weight of (out, in, bits), bits of decoder layers, and whether their inputs are rotated.
PRECISIONS: dict[str, tuple[Callable[[int, int, int], PackedWeight] | None, int, bool]] = {
    "FP16": (None, 16, False),
    "INT4": (random_weights.signed, 4, False),
    "INT2": (random_weights.two_levels, 2, False),
    "INT2 odd": (random_weights.odd, 2, False),
    "INT4 rotated": (random_weights.signed, 4, True),
    "INT2 rotated": (random_weights.two_levels, 2, True),
}
#: Inputs that a rotation mixes.
ROTATION_BLOCK = 64
#: Steps that compile, tune and capture, then steps that are timed; together they stay in one span of the cache.
WARM_UP, STEPS, TINY_STEPS = 4, 64, 1
DTYPE = torch.bfloat16


def main() -> None:
    """Measure, print a table, write JSON and a plot."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--plot", type=Path, help="draw batch 1 here, as SVG")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--contexts", nargs="+", type=int, default=CONTEXTS)
    parser.add_argument("--batches", nargs="+", type=int, default=BATCHES)
    parser.add_argument("--tiny", action="store_true", help="tiny shapes: a test of this program")
    parser.add_argument("--precisions", nargs="+", default=list(PRECISIONS), choices=PRECISIONS)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("This benchmark needs an NVIDIA GPU.")
    models = {"tiny": TINY} if options.tiny else {name: MODELS[name] for name in options.models}
    steps = TINY_STEPS if options.tiny else STEPS
    facts = {"steps": steps}
    rows: list[dict[str, Any]] = []
    failed: list[str] = []
    for name, shape in models.items():
        for precision in options.precisions:
            lengths = Lengths(options.contexts, options.batches, steps)
            try:
                rows += measure(name, shape, precision, lengths)
            except Exception as error:  # the others go on
                failed.append(f"{name}, {precision}")
                sys.stdout.write(f"{failed[-1]}: FAILED {error}\n{traceback.format_exc()}\n")
            torch.cuda.empty_cache()
            report.save(options.json, rows, **facts)
    compare(rows)
    report.show(rows)
    report.save(options.json, rows, **facts)
    if options.plot:
        report.draw_bars(
            options.plot,
            [row for row in rows if row["batch"] == 1],
            group=("model", "context"),
            series="precision",
            value="tokens/s",
        )
    if failed:
        sys.exit(f"Failed: {'; '.join(failed)}")


@dataclass(frozen=True)
class Lengths:
    """How much is decoded: each batch behind each number of tokens, in so many timed steps."""

    contexts: list[int]
    batches: list[int]
    steps: int


def measure(
    name: str, shape: LlamaConfig, precision: str, lengths: Lengths
) -> list[dict[str, Any]]:
    """One row for each context and batch of one model in one precision."""
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    engine = TransformersEngine(random_model(shape, *PRECISIONS[precision]))
    weights = torch.cuda.memory_allocated() - before
    building = torch.cuda.max_memory_allocated() - before
    rows = []
    for context in lengths.contexts:
        for batch in lengths.batches:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            rows.append(
                {
                    "model": name,
                    "precision": precision,
                    "backend": engine.backend,
                    "context": context,
                    "batch": batch,
                    "tokens/s": decode(engine, context, batch, lengths.steps),
                    "weights GB": weights / 1e9,
                    "peak building GB": building / 1e9,
                    "peak decoding GB": (torch.cuda.max_memory_allocated() - before) / 1e9,
                }
            )
            sys.stdout.write(f"{name} {precision} {context} {batch}: {rows[-1]['tokens/s']:.1f}\n")
            sys.stdout.flush()
    return rows


def decode(engine: TransformersEngine, context: int, batch: int, steps: int) -> float:
    """Tokens per second, of all rows together, of greedy decoding behind `context` tokens."""
    generator = torch.Generator().manual_seed(0)
    session = engine.session(batch, context + WARM_UP + steps)
    rows, tokens = list(range(batch)), [0] * batch
    for row in rows:
        ids = torch.randint(0, engine.config.vocab_size, (context,), generator=generator)
        tokens[row] = int(session.prefill(row, ids.tolist()).argmax())
    torch.cuda.reset_peak_memory_stats()
    start = 0.0
    for step in range(WARM_UP + steps):
        if step == WARM_UP:
            torch.cuda.synchronize()
            start = time.perf_counter()
        tokens = session.step(rows, tokens).argmax(dim=-1).tolist()  # waits for the GPU
    return batch * steps / (time.perf_counter() - start)


def compare(rows: list[dict[str, Any]]) -> None:
    """Add to each row how many times as fast as FP16 it is, same model, context and batch."""
    base = {
        (row["model"], row["context"], row["batch"]): row["tokens/s"]
        for row in rows
        if row["precision"] == "FP16"
    }
    for row in rows:
        first = base.get((row["model"], row["context"], row["batch"]))
        row["times FP16"] = row["tokens/s"] / first if first else None


def random_model(
    config: LlamaConfig,
    form: Callable[[int, int, int], PackedWeight] | None,
    bits: int,
    rotated: bool = False,
) -> Any:
    """A Llama on the GPU with random weights, those of its decoder layers packed by `form` in `bits`, with rotated
    inputs where asked for; None: all in bfloat16.
    """
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    if form:
        _pack(model, form, bits, rotated)
    for name, parameter in list(model.named_parameters()):
        owner, _, leaf = name.rpartition(".")
        made = torch.empty(parameter.shape, dtype=DTYPE, device="cuda")
        made.fill_(1.0) if made.dim() == 1 else made.normal_(std=0.02)
        setattr(model.get_submodule(owner), leaf, nn.Parameter(made, requires_grad=False))
    model.model.rotary_emb = LlamaRotaryEmbedding(config).to("cuda")
    model.config.dtype = DTYPE
    return model.eval()


def _pack(
    model: nn.Module, form: Callable[[int, int, int], PackedWeight], bits: int, rotated: bool
) -> None:
    """Put packed random weights in the place of linear layers (head: 8 bits) and the embedding (8 bits)."""
    for name, module in list(model.named_modules()):
        if not isinstance(module, nn.Embedding | nn.Linear):
            continue
        rows, columns = module.weight.shape
        if isinstance(module, nn.Embedding):
            packed = random_weights.signed(rows, columns, 8)
            replace_module(model, name, PackedEmbedding(packed, DTYPE))
            continue
        is_head = name == "lm_head"
        packed = random_weights.signed(rows, columns, 8) if is_head else form(rows, columns, bits)
        if rotated and not is_head:
            packed = replace(packed, transform=_rotation(columns))
        replace_module(model, name, ServedLinear(PackedLinear(packed)))


@functools.cache
def _rotation(width: int) -> Transform:
    """The rotation of `width` inputs. Layers that read the same inputs share one, as those of a run do."""
    signs = torch.randint(0, 2, (width,), device="cuda").half() * 2 - 1
    return Transform(hadamard_block(width, ROTATION_BLOCK), scale_in=signs)


if __name__ == "__main__":
    main()
