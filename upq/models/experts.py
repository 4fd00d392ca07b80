"""Mixtures of experts whose matrices transformers stacks in one tensor, taken apart into linear layers.

A layer of a mixture has one module for all of its experts, with tensors (experts, out, in) or (experts, in, out). Each
such module is replaced by `RoutedExperts`, in which each expert has linear layers of its own: a matrix is then found,
calibrated, packed and named like any other. What the module does between the two matrices stays the family's own code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from upq.errors import UserError
from upq.layers import replace_module

#: Experts of a whole model, each a few modules that take time to make. The largest models have 25 000.
MOST_EXPERTS = 1 << 16
#: What transformers says of stacked experts that it can multiply in several ways; their layout is known by it.
_TRAITS = ("has_gate", "has_bias", "is_transposed", "has_post_expert_norm")


class _GivenLinear(nn.Linear):
    """A linear layer whose weights are given; drawing them first takes seconds for thousands of experts."""

    def reset_parameters(self) -> None:
        """Draw nothing."""


class Expert(nn.Module):
    """One expert: its first matrix, the activation that it is given, its last matrix.

    rows: which hidden states, counted over the batch, it reads at present, in order; None between two calls.
    """

    rows: torch.Tensor | None = None

    def __init__(self, first: str, matrices: dict[str, nn.Linear]) -> None:
        super().__init__()
        self.first = first
        for name, linear in matrices.items():
            self.add_module(name, linear)

    def forward(
        self, hidden: torch.Tensor, activate: Callable[[torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        """hidden: (rows, in) -> (rows, out)."""
        inner = activate(self.get_submodule(self.first)(hidden))
        return self.get_submodule("down_proj")(inner)


class RoutedExperts(nn.Module):
    """The experts of one layer, children "0", "1", ...; each computes the tokens that are routed to it.

    shell: what is left of the family's module without its matrices; it knows the activation.
    """

    def __init__(self, stacked: Any) -> None:
        super().__init__()
        self.count: int = len(stacked.down_proj)
        for number, matrices in enumerate(_matrices(stacked)):
            self.add_module(str(number), Expert(_first(stacked), matrices))
        for name, _ in list(stacked.named_parameters(recurse=False)):
            delattr(stacked, name)
        self.shell = stacked

    def expert(self, number: int) -> Expert:
        """The expert of this number."""
        expert = self.get_submodule(str(number))
        assert isinstance(expert, Expert)
        return expert

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """hidden_states: (tokens, in), top_k_index: (tokens, k) numbers of experts, top_k_weights: (tokens, k) ->
        (tokens, out), summed up in float32. Names are those of transformers.

        A number that no expert has, as some routers give to choose none, adds nothing.
        """
        total = torch.zeros_like(hidden_states, dtype=torch.float32)
        for number in top_k_index.unique().tolist():
            if number >= self.count:
                continue
            expert, (rows, places) = self.expert(number), torch.where(top_k_index == number)
            expert.rows = rows
            outputs = expert(hidden_states[rows], self._activate)
            expert.rows = None
            weighted = outputs * top_k_weights[rows, places, None]
            total.index_add_(0, rows, weighted.float())
        return total.to(hidden_states.dtype)

    def _activate(self, values: torch.Tensor) -> torch.Tensor:
        return self.shell._apply_gate(values) if self.shell.has_gate else self.shell.act_fn(values)


def stacked_experts(model: nn.Module) -> dict[str, nn.Module]:
    """The modules of a model that hold stacked experts in a known layout, by name."""
    return {name: module for name, module in model.named_modules() if _is_stacked(module)}


def unstack_experts(model: nn.Module) -> None:
    """Replace all stacked experts of a known layout by RoutedExperts over the same values.

    Matrices that are stored (out, in) stay where they are in memory; others are copied layer by layer.
    Raises UserError("bad_config") for a model with more experts than anybody makes.
    """
    found = stacked_experts(model)
    count = sum(len(stacked.get_parameter("down_proj")) for stacked in found.values())
    if count > MOST_EXPERTS:
        raise UserError(
            "bad_config",
            f"The config describes {count} experts; at most {MOST_EXPERTS} are read.",
            "Download the model again.",
        )
    for name, stacked in found.items():
        replace_module(model, name, RoutedExperts(stacked))


def expert_of(root: nn.Module, name: str) -> Expert | None:
    """The expert whose layer the linear of this name below root is; None for a layer that every token meets."""
    parent = root.get_submodule(name.rpartition(".")[0])
    return parent if isinstance(parent, Expert) else None


def mixtures(model: nn.Module) -> Iterator[tuple[str, RoutedExperts, int]]:
    """(name, experts, how many of them a token meets) of each mixture; all of them where its router does not say."""
    for name, module in model.named_modules():
        if isinstance(module, RoutedExperts):
            around = model.get_submodule(name.rpartition(".")[0])
            said = (getattr(part, "top_k", None) for part in (around, *around.children()))
            top = next((value for value in said if isinstance(value, int)), module.count)
            yield name, module, min(top, module.count)


def _is_stacked(module: Any) -> bool:
    """Whether a module holds the matrices of several experts as transformers describes them, and nothing else."""
    if not all(hasattr(module, trait) for trait in _TRAITS) or module.has_post_expert_norm:
        return False
    held = dict(module.named_parameters())
    biases = {f"{name}_bias" for name in _names(module)} if module.has_bias else set()
    return held.keys() == {*_names(module), *biases} and all(
        weight.dim() == 2 + (name not in biases) for name, weight in held.items()
    )


def _first(stacked: Any) -> str:
    """The name of the first matrix of each expert: gate and up in one, or up alone."""
    return "gate_up_proj" if stacked.has_gate else "up_proj"


def _names(stacked: Any) -> tuple[str, str]:
    return _first(stacked), "down_proj"


def _matrices(stacked: Any) -> Iterator[dict[str, nn.Linear]]:
    """The linear layers of each expert by name."""
    weights = {name: getattr(stacked, name).detach() for name in _names(stacked)}
    for number in range(len(stacked.down_proj)):
        yield {
            name: _linear(
                weight[number].T.contiguous() if stacked.is_transposed else weight[number],
                getattr(stacked, f"{name}_bias").detach()[number] if stacked.has_bias else None,
            )
            for name, weight in weights.items()
        }


def _linear(weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Linear:
    """A linear layer over a weight (out, in) and a bias that are there already."""
    outputs, inputs = weight.shape
    linear = _GivenLinear(inputs, outputs, bias=False, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias, requires_grad=False)
    return linear
