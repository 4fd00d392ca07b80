"""AutoRound on the data of one of our presets, measured on the same held-out answers as our methods.

    pip install auto-round==0.16.1
    python -m bench.autoround --bits 2 --iters 50 --data-dir build/bench/quick

--data-dir is that of bench.quantization, whose answers of the FP16 model are taken over. AutoRound drops sequences
shorter than its length, so the training sequences are put behind each other and cut. It leaves embedding and head
in 16 bits, where our presets round them to 8.
"""

from __future__ import annotations

import argparse
import copy
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from auto_round import AutoRound  # pyright: ignore[reportMissingImports]

from bench import report
from upq import data
from upq.config import preset
from upq.context import SilentContext
from upq.evaluation import Reference
from upq.models import placement
from upq.quantize import pipeline
from upq.store import open_store

#: Tokens of a calibration sequence, and the group size; both as in our presets.
LENGTH, GROUP = 256, 64


def main() -> None:
    """Quantize, measure, print the row, write JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bits", type=int, default=2, choices=(2, 4))
    parser.add_argument("--iters", type=int, default=50, help="steps of signed descent per block")
    parser.add_argument("--preset", default="quick", help="whose data, model and seed are used")
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    config = preset(options.preset)
    loaded, teacher = pipeline.load_teacher(config)
    store = open_store(options.data_dir)
    context = SilentContext(options.data_dir, store.cached_answers, store.save_answers)
    dataset = data.build(config, replace(loaded, model=teacher), context)
    samples = _samples([token for example in dataset.train for token in example.ids])
    started = time.monotonic()
    quantized = _quantized(loaded, samples, options.bits, options.iters, config.seed)
    seconds = time.monotonic() - started
    reference = Reference(teacher, dataset.held_out, context.check)
    found = reference.measure(placement.placed_copy(quantized, teacher.device), context.check)
    label, bits = f"AutoRound W{options.bits}G{GROUP}", _bits_per_weight(options.bits)
    row = {"iters": options.iters, "calibration tokens": len(samples) * LENGTH, "s": seconds}
    row |= found.row(label, f"INT{options.bits}", bits_per_weight=bits)
    report.show([{name: value for name, value in row.items() if name != "seconds"}])
    report.save(options.json, [row], preset=options.preset, seed=config.seed)


def _samples(tokens: list[int]) -> list[dict[str, torch.Tensor]]:
    whole = [tokens[at : at + LENGTH] for at in range(0, len(tokens) - LENGTH + 1, LENGTH)]
    return [{"input_ids": torch.tensor([one])} for one in whole]


def _quantized(loaded: Any, samples: list[Any], bits: int, iters: int, seed: int) -> Any:
    """The model with its linears at the values that AutoRound's codes stand for."""
    scheme = {"bits": bits, "group_size": GROUP, "sym": False, "data_type": "int", "act_bits": 16}
    tuner = AutoRound(
        copy.deepcopy(loaded.model),  # changed in place, and may share its weights with the teacher
        loaded.tokenizer,
        scheme=scheme,
        dataset=samples,
        iters=iters,
        seqlen=LENGTH,
        nsamples=len(samples),
        batch_size=8,
        seed=seed,
        device_map="cpu",
        enable_torch_compile=False,
    )
    return tuner.quantize()[0]


def _bits_per_weight(bits: int) -> float:
    """Codes, and a group's float16 scale and zero in as many bits as a code."""
    return bits + (16 + bits) / GROUP


if __name__ == "__main__":
    main()
