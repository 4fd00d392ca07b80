"""A trial of a model that has just been loaded: its parts, run as a quantization runs them, give what the model gives.

Stacked experts are taken apart on the way, and have to compute what they computed before.

Everything that is measured or trained relies on four things that no config says: the decoder blocks are called once
each, one behind the other; a block called alone computes what it computes in the model; it lets each of its linear
layers read each token, and does not read their weights; the head reads what the decoder leaves. A model where one of
them does not hold is refused here, before any work, and never measured wrongly.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from upq.errors import UserError
from upq.layers import replace_module, swap_linears
from upq.models.experts import expert_of, stacked_experts, unstack_experts
from upq.models.forward import BlockCall, block_calls, last_hidden, replaced_forwards
from upq.models.logits import head
from upq.models.structure import decoder_blocks, replaceable_linears

#: Tokens of the trial.
TOKENS = 6
#: Two results differ by rounding where they differ by at most so many last bits of the largest value, or by so much of
#: it where a dtype has more bits than that.
LAST_BITS, SMALLEST_SHARE = 8, 1e-5
#: What the code of a model may raise when its parts are called in another way than it expects.
_ERRORS = (ArithmeticError, AttributeError, LookupError, NotImplementedError, RuntimeError)
_ERRORS += (TypeError, ValueError, AssertionError)


@torch.no_grad()
def unstack_alike(model: Any) -> None:
    """Take a model's stacked experts apart. Raises UserError `unsupported_arch` where they compute something else then:
    each module of experts is compared on the hidden states and choices of a few tokens.
    """
    stacked = stacked_experts(model)
    if not stacked:
        return
    seen: dict[str, tuple[list[torch.Tensor], dict[str, torch.Tensor], torch.Tensor]] = {}

    def keep(name: str) -> Any:
        def hook(_module: nn.Module, args: Any, kwargs: Any, output: torch.Tensor) -> None:
            named = {key: value.clone() for key, value in kwargs.items()}
            seen[name] = [value.clone() for value in args], named, output.clone()

        return hook

    with ExitStack() as stack:
        for name, module in stacked.items():
            handle = module.register_forward_hook(keep(name), with_kwargs=True)
            stack.callback(handle.remove)
        try:
            model(input_ids=trial_ids(model), use_cache=False)
        except _ERRORS as error:
            raise _unsupported(
                model, f"it cannot be run ({type(error).__name__}: {error})"
            ) from error
    unstack_experts(model)
    for name, (args, kwargs, output) in seen.items():
        try:
            found = model.get_submodule(name)(*args, **kwargs)
        except _ERRORS as error:
            reason = f"{name} cannot be run expert by expert ({type(error).__name__}: {error})"
            raise _unsupported(model, reason) from error
        if not _are_close(found, output):
            raise _unsupported(model, f"{name} computes something else expert by expert")


def _unsupported(model: Any, reason: str) -> UserError:
    return UserError(
        "unsupported_arch",
        f"{type(model).__name__} cannot be quantized block by block: {reason}.",
        "Choose a causal language model such as Llama, Qwen, Mistral, Gemma, Phi or SmolLM.",
    )


@torch.no_grad()
def vet_parts(model: Any) -> None:
    """Compare a model with its parts, on a few tokens. Raises UserError `unsupported_arch` where they differ."""
    _, blocks = decoder_blocks(model)
    ids = trial_ids(model)
    try:
        passes, logits = _recorded(model, blocks, ids)
        reason = _difference(model, blocks, ids, passes, logits)
    except _ERRORS as error:
        reason = f"its parts cannot be run one by one ({type(error).__name__}: {error})"
    if reason:
        raise _unsupported(model, reason)


def trial_ids(model: Any) -> torch.Tensor:
    """The token ids of a trial, (1, TOKENS), the same every time."""
    rows = model.get_input_embeddings().weight.shape[0]
    ids = torch.randint(rows, (1, TOKENS), generator=torch.Generator().manual_seed(0))
    return ids.to(model.device)


#: Of each call of a block, in order: the block's number, the hidden states that entered, and what it returned.
_Passes = list[tuple[int, torch.Tensor, Any]]


def _recorded(model: Any, blocks: nn.ModuleList, ids: torch.Tensor) -> tuple[_Passes, torch.Tensor]:
    """Every call of a block in the model's own forward pass, and the logits that it gave."""
    passes: _Passes = []

    def keep(index: int) -> Any:
        def hook(_module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            entered = args[0] if args else kwargs["hidden_states"]
            passes.append((index, entered.clone(), output))

        return hook

    with ExitStack() as stack:
        for index, block in enumerate(blocks):
            handle = block.register_forward_hook(keep(index), with_kwargs=True)
            stack.callback(handle.remove)
        logits = model(input_ids=ids, use_cache=True).logits  # as a chat does
    return passes, logits


def _difference(
    model: Any, blocks: nn.ModuleList, ids: torch.Tensor, passes: _Passes, logits: torch.Tensor
) -> str:
    """How the model differs from its parts; "" where it does not."""
    if [index for index, _, _ in passes] != list(range(len(blocks))):
        return f"it does not call its {len(blocks)} blocks once each and in order"
    entering, calls = block_calls(model, ids)
    before = entering
    for block, call, (index, entered, output) in zip(blocks, calls, passes, strict=True):
        if not _are_close(before, entered):
            return f"block {index} does not read what the block before it gives"
        before = BlockCall.hidden_of(output)
        if not _are_close(call.run(block, entered), before):
            return f"block {index} computes something else when it is called alone"
        if reason := _misuse(block, call, entered):
            return f"block {index} {reason}"
    replies = [lambda *_, given=output, **__: given for _, _, output in passes]
    with replaced_forwards(blocks, replies):
        hidden = last_hidden(model, ids)
    if not _are_close(head(model)(hidden), logits):
        return "its decoder and its head do not give its logits"
    return ""


class _Packed(nn.Module):
    """A linear layer as it is when it is packed: it multiplies, but has no weight to read. rows: of what it read."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear, self.rows = [linear], 0  # in a list it is no module of this one

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """inputs: (..., in) -> (..., out)."""
        self.rows = inputs.numel() // inputs.shape[-1]
        return self.linear[0](inputs)


def _misuse(block: nn.Module, call: BlockCall, entered: torch.Tensor) -> str:
    """What a block does with a linear layer other than let it read each token, in words; "" where there is nothing."""
    linears = replaceable_linears(block)
    try:
        packed = _run_packed(block, call, entered, linears)
    except AttributeError:
        return f"reads the weight of {_read_one(block, call, entered)} itself, which is gone once it is packed"
    for name, layer in packed.items():
        if layer.rows != TOKENS and not expert_of(block, name):
            return f"lets {name} read {layer.rows} rows for {TOKENS} tokens"
    return ""


def _read_one(block: nn.Module, call: BlockCall, entered: torch.Tensor) -> str:
    """The name of the first linear layer whose weight a block reads."""
    for name, linear in replaceable_linears(block).items():
        try:
            _run_packed(block, call, entered, {name: linear})
        except AttributeError:
            return name
    return "a linear layer"


def _run_packed(
    block: nn.Module, call: BlockCall, entered: torch.Tensor, linears: dict[str, nn.Linear]
) -> dict[str, _Packed]:
    """Run a block in which the given linear layers are packed; returns what stood in their place."""
    packed = {name: _Packed(linear) for name, linear in linears.items()}
    swap_linears(block, list(linears), lambda name, _: packed[name])
    try:
        call.run(block, entered)
    finally:
        for name, linear in linears.items():
            replace_module(block, name, linear)
    return packed


def _are_close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether two results differ by no more than rounding. What is not finite in both counts as equal: 16 bits may
    overflow here in a model that computes in other bits later.
    """
    if found.shape != expected.shape:
        return False
    share = max(LAST_BITS * torch.finfo(expected.dtype).eps, SMALLEST_SHARE)
    known = expected.isfinite()
    if not torch.equal(found.isfinite(), known):
        return False
    found, expected = found[known].float(), expected[known].float()
    return not len(found) or bool(
        (found - expected).abs().max() <= share * expected.abs().max().clamp_min(share)
    )
