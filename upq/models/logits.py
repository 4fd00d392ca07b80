"""How a model gets from hidden states to logits: by its own forward pass, whose decoder gives what it is handed.

So every scale, multiplier and cap that a family has is applied where the family applies it, and no table of families
can be out of date. `upq.models.trial` compares the result with the model's own logits when a model is loaded.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from upq.errors import UserError

#: Rows of hidden states that the head turns into logits at once, so that logits of a whole batch never exist.
CHUNK_ROWS = 128
#: Values of a head's matrix that are widened to float32 at once, so that a wide copy of all of it never exists.
WIDENED_VALUES = 2**24

Logits = Callable[[torch.Tensor], torch.Tensor]


def backbone(model: Any) -> nn.Module:
    """The model without its head: maps input_ids to the last hidden states.

    Raises UserError `unsupported_arch` for a model that is not made of the two.
    """
    decoder = getattr(model, "get_decoder", lambda: None)()
    # Without a rule of its own for a family, transformers answers with the whole model.
    for candidate in (decoder, getattr(model, "base_model", None), *_only_body(model)):
        if isinstance(candidate, nn.Module) and candidate is not model:
            return candidate
    raise UserError(
        "unsupported_arch",
        f"{type(model).__name__} has no decoder apart from its head.",
        "Choose a causal language model such as Llama, Qwen, Mistral, Gemma, Phi or SmolLM.",
    )


def head(model: Any, *, exact: bool = False) -> Logits:
    """The map from hidden states (..., hidden) to logits (..., vocabulary), as the model's own forward pass has it.

    exact: the product with the head's matrix is computed and kept in float32, whatever the model's dtype.
    """
    shell, given = _shell(model)
    if exact:
        linear = model.get_output_embeddings()
        _replace(shell, _path(model, linear), _Exact(linear))

    def logits(hidden: torch.Tensor) -> torch.Tensor:
        rows = hidden.reshape(1, -1, hidden.shape[-1])
        ids = torch.zeros(rows.shape[:2], dtype=torch.int64, device=rows.device)
        given.last_hidden_state = rows
        try:
            found = shell(input_ids=ids, use_cache=False).logits
        finally:
            given.last_hidden_state = None
        return found.reshape(*hidden.shape[:-1], found.shape[-1])

    return logits


class _Given:
    """What a stand-in for a decoder returns: its last hidden states, and None for whatever else a family asks for."""

    def __init__(self) -> None:
        self.last_hidden_state: torch.Tensor | None = None

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)

    def __getitem__(self, index: int | slice) -> Any:
        return (self.last_hidden_state,)[index]


class _Exact(nn.Module):
    """A head, of whatever kind, in float32; a 16-bit matrix is widened a few of its rows at a time."""

    def __init__(self, linear: Any) -> None:
        super().__init__()
        self.linear = linear
        self.weight = getattr(linear, "weight", None)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden: (..., in) -> (..., out) float32."""
        wide, weight = hidden.float(), self.weight
        if not isinstance(self.linear, nn.Linear) or weight is None or weight.dtype.itemsize > 2:
            return self.linear(wide)
        parts = weight.split(max(1, WIDENED_VALUES // weight.shape[1]))
        found = torch.cat([F.linear(wide, part.float()) for part in parts], -1)
        return found if self.linear.bias is None else found + self.linear.bias.float()


def _shell(model: Any) -> tuple[Any, _Given]:
    """(the model without its decoder's work, what the stand-in for the decoder returns). Shares every other module; the
    model stays as it is, and goes with the last reference to it: the stand-in has none to itself, in which the model
    would wait for the garbage collector, on a GPU beside the next one.
    """
    body, given = backbone(model), _Given()
    stand_in = copy.copy(body)
    stand_in.__dict__["forward"] = lambda *_, **__: given
    shell = copy.copy(model)
    _replace(shell, _path(model, body), stand_in)
    return shell, given


def _replace(shell: nn.Module, path: str, module: nn.Module) -> None:
    """Put a module at the dotted path below a shell. Modules on the way are copied: only the shell changes."""
    first, _, rest = path.partition(".")
    shell._modules = dict(shell._modules)
    if rest:
        below = copy.copy(shell._modules[first])
        assert below is not None
        _replace(below, rest, module)
        module = below
    shell._modules[first] = module


def _path(model: nn.Module, wanted: nn.Module) -> str:
    """The name that a module goes by in a model."""
    return next(name for name, module in model.named_modules() if module is wanted)


def _only_body(model: nn.Module) -> list[nn.Module]:
    """The child of a model that embeds; a model whose prefix names no child has one beside its head."""
    embedding = getattr(model, "get_input_embeddings", lambda: None)()
    return [
        child
        for child in model.children()
        if any(module is embedding for module in child.modules())
    ]
