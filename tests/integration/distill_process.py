"""One of the processes that distill together: `accelerate launch ... distill_process MODEL FOLDER`.

The main process saves what it has at the end: the trained layers and the losses.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from tests.support.helpers import RecordingContext, examples
from upq.config import DistillConfig
from upq.jobs.distributed import join
from upq.layers import INT2, FakeQuantLinear, Latent, fake_quant_layers, swap_linears
from upq.models import copy_to_quantize, load, plan_layers
from upq.quantize import checkpoint
from upq.training import parallel
from upq.training.distill import Distillation, distill

#: An odd number of sequences and short batches: some steps have fewer sequences than processes.
DATA = examples(5)
SETTINGS = DistillConfig(
    tokens=300, batch_tokens=48, accumulation=2, weight_lr=0.05, scale_lr=0.01, norm_lr=0.01
)


def train(source: str, folder: Path) -> None:
    """Distill the model and save layers, norms and losses as folder/result."""
    torch.set_num_threads(1)
    teacher = load(source).model
    names = [layer.name for layer in plan_layers(teacher, 16)]
    student = copy_to_quantize(teacher, names)

    def make(_: str, linear: torch.nn.Linear) -> FakeQuantLinear:
        scale, _zero = INT2.fit(linear.weight, 16, "absmax")
        return FakeQuantLinear(Latent(linear.weight, scale), linear.bias, INT2)

    swap_linears(student, names, make)
    context = RecordingContext(folder)
    distill(Distillation(student, teacher, DATA, SETTINGS), context)
    if parallel.is_main():
        assert {name for name, _ in fake_quant_layers(student)} == set(names)
        changed = {n: parameter for n, parameter in student.named_parameters() if "embed" not in n}
        curve = context.curve("jsd")
        state = {"processes": parallel.size(), "losses": [curve[step] for step in sorted(curve)]}
        checkpoint.save(folder / "result", changed, state)


if __name__ == "__main__":
    processes = join()
    train(sys.argv[1], Path(sys.argv[2]))
    processes.destroy_process_group()
