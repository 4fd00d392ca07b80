"""Who reads the residual stream of a decoder and who writes it, found by running the model on a few tokens.

What a basis change of the stream asks for: every reader stands behind an RMSNorm, whose length the change leaves as it
is, and every writer is a linear layer. Whether that is all there is to a model shows when the changed one is run.
"""

from __future__ import annotations

import copy
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from upq.errors import UserError
from upq.models.structure import block_linears, decoder_blocks
from upq.models.trial import trial_ids

#: Two results of a norm differ by rounding up to this share of the largest, its epsilon included.
ROUNDING = 1e-4
#: What the class of a norm has in its name, in every family of transformers.
NORM = "Norm"


@dataclass(frozen=True)
class Residual:
    """The residual stream of a model; all names are those of its modules.

    readers: each norm -> the linear layers that read it; the last norm has the head. writers: linear layers whose
    outputs are added to the stream. values: (v_proj, o_proj, size of a head) of every attention that has both.
    """

    readers: dict[str, list[str]]
    writers: list[str]
    values: list[tuple[str, str, int]]


@torch.no_grad()
def residual_of(model: Any) -> Residual:
    """Find the readers and writers. Raises UserError("unsupported_rotation") with the layer where there are others."""
    prefix, blocks = decoder_blocks(model)
    linears = {
        f"{prefix}.{index}.{name}": linear
        for index, block in enumerate(blocks)
        for name, linear in block_linears(block).items()
    }
    reads, norms = _run(model, linears)
    readers: dict[str, list[str]] = {name: [] for name in norms}
    for linear, norm in reads.items():
        readers[norm].append(linear)
    (*others, last) = [name for name in norms if not name.startswith(f"{prefix}.")] or [""]
    if not last or others:
        raise cannot_absorb(model, "it has no single norm behind its blocks")
    head = model.get_output_embeddings()
    readers[last] = [name for name, module in model.named_modules() if module is head]
    for name, of_norm in readers.items():
        _vet_norm(model, name, of_norm)
    writers = [name for name in linears if name not in reads]
    width = model.get_input_embeddings().weight.shape[1]
    for name in writers:
        if linears[name].out_features != width:
            raise cannot_absorb(
                model, f"{name} neither reads a norm of the stream nor writes to it"
            )
    return Residual(readers, writers, _values(model, reads, writers))


def cannot_absorb(model: Any, reason: str) -> UserError:
    """The error for a model whose weights cannot absorb a rotation."""
    return UserError(
        "unsupported_rotation",
        f"The weights of {type(model).__name__} cannot absorb a rotation: {reason}.",
        "Use rotation=input, or a model such as Llama, Mistral, Qwen, SmolLM or Granite.",
    )


def _run(model: Any, linears: dict[str, nn.Linear]) -> tuple[dict[str, str], list[str]]:
    """(linear layer -> the norm of the stream that it reads, the norms of the stream), in the order of the modules."""
    modules = dict(model.named_modules())
    outputs: dict[str, torch.Tensor] = {}  # kept, so that no two have the same memory
    inputs: dict[str, torch.Tensor] = {}

    def keep_output(name: str, _module: nn.Module, _inputs: Any, output: Any) -> None:
        if isinstance(output, torch.Tensor):
            outputs[name] = output

    def keep_input(name: str, _module: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        inputs.update({name: given[0]} if given else {})

    with ExitStack() as stack:
        for name, module in modules.items():
            if NORM in type(module).__name__:
                handle = module.register_forward_hook(partial(keep_output, name))
                stack.callback(handle.remove)
        for name, linear in linears.items():
            handle = linear.register_forward_pre_hook(partial(keep_input, name))
            stack.callback(handle.remove)
        model(input_ids=trial_ids(model), use_cache=False)
    width = model.get_input_embeddings().weight.shape[1]
    norms = {name: given for name, given in outputs.items() if given.shape[-1] == width}
    places = {(given.data_ptr(), given.numel()): name for name, given in norms.items()}
    found = {name: places.get((read.data_ptr(), read.numel()), "") for name, read in inputs.items()}
    reads = {name: found[name] for name in linears if found.get(name)}
    return reads, [name for name in modules if name in norms]


def _vet_norm(model: Any, name: str, readers: list[str]) -> None:
    """Refuse a norm that acts on what is added to the stream, or whose outputs are scaled first, or no RMSNorm."""
    norm = model.get_submodule(name)
    if not readers:
        raise cannot_absorb(model, f"no linear layer reads what {name} gives as it is")
    named = dict(norm.named_parameters())
    width = model.get_input_embeddings().weight.shape[1]
    values = torch.randn(1, 4, width, generator=torch.Generator().manual_seed(0))
    gain = named.pop("weight", torch.ones(width)).float()
    wanted = torch.nn.functional.rms_norm(values, (width,)) * gain
    given = copy.deepcopy(norm).float()(values)
    if named or not (given - wanted).abs().max() <= ROUNDING * wanted.abs().max():
        raise cannot_absorb(model, f"{name} computes something else than weight * x / rms(x)")


def _values(model: Any, reads: dict[str, str], writers: list[str]) -> list[tuple[str, str, int]]:
    """Attentions whose values go from a v_proj to an o_proj, head by head."""
    found = []
    for name in reads:
        attention, _, leaf = name.rpartition(".")
        output = f"{attention}.o_proj"
        size = getattr(model.get_submodule(attention), "head_dim", 0)
        if leaf == "v_proj" and output in writers and size:
            found.append((name, output, size))
    return found
