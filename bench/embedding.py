"""What few bits of the input embedding and the output head cost: KL to the FP16 model, its linear layers untouched.

    python -m bench.embedding --data-dir DIR

The pair is parted, so that each of the two has bits of its own, whatever the model does. Held-out answers are those of
the preset `quick`; the cost is theirs whatever else is quantized.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from torch import nn

from kernels.packing import PackedWeight
from kernels.reference import weight_of
from upq import data
from upq.artifact.embeddings import in_4_bits, in_8_bits
from upq.config import preset, with_settings
from upq.context import SilentContext
from upq.evaluation import Reference
from upq.models import load, placed_copy
from upq.quantize.pipeline import prepare
from upq.store import data_dir, open_store


def main() -> None:
    """Read the flags, measure, and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--data-dir")
    given = parser.parse_args()
    store = open_store(data_dir(given.data_dir))
    config = with_settings(preset("quick"), {"data.max_rows": "8"})
    device, loaded = prepare(config), load(given.model)
    teacher = placed_copy(loaded.model, device)
    with tempfile.TemporaryDirectory() as folder:
        context = SilentContext(Path(folder), store.cached_answers, store.save_answers)
        dataset = data.build(config, replace(loaded, model=teacher), context)
    reference = Reference(teacher, dataset.held_out, context.check)
    weight = teacher.get_input_embeddings().weight.detach().float().cpu()
    head = teacher.get_output_embeddings().weight.detach().float().cpu()
    rows = []
    for what, (packed, packed_head) in variants(weight, head).items():
        model = parted(teacher, packed, packed_head)
        found = reference.measure(model, context.check)
        size = sum(_size(one, weight) for one in (packed, packed_head))
        rows.append([what, found.kl, f"{found.top1:.1%}", size / 1e6])
    print(f"{loaded.info.name}, {found.tokens} tokens")
    print(tabulate(rows, ["embedding, head", "KL", "top-1", "MB, parted"], floatfmt=".4f"))


def variants(
    weight: torch.Tensor, head: torch.Tensor
) -> dict[str, tuple[PackedWeight | None, PackedWeight | None]]:
    """Embedding and head in the forms that are measured; None stands for 16 bits."""
    wide, small, wide_head = in_8_bits(weight), in_4_bits(weight), in_8_bits(head)
    return {
        "8, 16": (wide, None),
        "4, 16": (small, None),
        "16, 8": (None, wide_head),
        "16, 4": (None, in_4_bits(head)),
        "8, 8": (wide, wide_head),
        "4, 8": (small, wide_head),
    }


def parted(model: Any, embedding: PackedWeight | None, head: PackedWeight | None) -> Any:
    """The model with matrices of its own at both ends, each as its codes say, or as it was."""
    ends = {model.get_input_embeddings(): embedding, model.get_output_embeddings(): head}
    known = {id(one): one for one in model.parameters()}
    twin = copy.deepcopy(model, known)  # shares every weight
    for old, new in zip(
        ends, (twin.get_input_embeddings(), twin.get_output_embeddings()), strict=True
    ):
        if (packed := ends[old]) is not None:
            values = weight_of(packed).to(old.weight.device, old.weight.dtype)
            new.weight = nn.Parameter(values, requires_grad=False)
    return twin


def _size(packed: PackedWeight | None, weight: torch.Tensor) -> int:
    return 2 * weight.numel() if packed is None else packed.size_bytes


if __name__ == "__main__":
    main()
