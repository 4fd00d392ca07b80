"""What a decoder is made of, found by structure and not by a table of model names.

The decoder blocks are the longest list of identical modules; the layers to quantize are the
`nn.Linear` modules inside each block. Everything in a block that holds a weight matrix appears in
the plan, to be quantized or skipped with a reason: nothing is left out silently.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from upq.errors import UserError
from upq.layers import Grid

#: A 2-bit row must fill whole bytes.
CODES_PER_BYTE = 4
#: What stands for no limit: more tokens than any memory holds.
UNLIMITED = 2**31
#: Words of the reasons for which a layer is skipped; which of them is given decides what a person is advised to do.
GROUP_REASON, STACKED_REASON = "group size", "stacked experts"
#: Inputs that share a scale in an embedding of 4 bits.
LOOKED_UP_GROUP = 32
#: Why the layer that chooses among experts is left alone.
ROUTER_REASON = "the router of a mixture of experts decides too much for few bits"
#: Reasons that a refusal shows.
SHOWN_REASONS = 3


@dataclass(frozen=True)
class LayerPlan:
    """One weight matrix of a block: shape is (out, in); reason says why it is skipped, else ""."""

    name: str
    shape: tuple[int, int]
    quantize: bool
    reason: str


def decoder_blocks(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """The qualified name and the list of decoder blocks.

    Raises UserError `unsupported_arch` when the model has no list of identical blocks.
    """
    inside = set(_decoder(model).modules())
    candidates = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and module in inside and _is_stack(module)
    }
    # A block may hold a list of its own (MoE experts) that is longer than the list of blocks.
    outermost = {
        name: stack
        for name, stack in candidates.items()
        if not any(name.startswith(f"{other}.") for other in candidates)
    }
    if not outermost:
        raise UserError(
            "unsupported_arch",
            f"{type(model).__name__} has no list of identical decoder blocks to quantize.",
            "Choose a causal language model such as Llama, Qwen, Mistral, Gemma, Phi or SmolLM.",
        )
    return max(outermost.items(), key=lambda item: len(item[1]))


def replaceable_linears(block: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers of a block by name that packed ones may replace: all but those that choose experts."""
    routers = _routers(block)
    return {name: linear for name, linear in block_linears(block).items() if linear not in routers}


def block_linears(block: nn.Module) -> dict[str, nn.Linear]:
    """Every linear layer of a block by its name inside the block, in module order."""
    return {name: module for name, module in block.named_modules() if isinstance(module, nn.Linear)}


def plan_layers(model: PreTrainedModel, group_size: int, bits: int = 0) -> list[LayerPlan]:
    """Decide for each weight matrix of the blocks whether it can be quantized.

    group_size: inputs per scale; 0 means one scale per output row. bits: look at the values as well, whether they can
    be held by so many bits; 0: at shapes alone, as a model without values needs.
    Raises UserError `nothing_to_quantize` when no layer, or under half of the weights, would be.
    """
    prefix, blocks = decoder_blocks(model)
    owners = _weight_owners(model)
    plan = [
        entry
        for index, block in enumerate(blocks)
        for entry in _plan_block(block, f"{prefix}.{index}", group_size, owners)
    ]
    plan = [_checked(entry, model, group_size, bits) for entry in plan]
    _require_most(plan, type(model).__name__)
    return plan


def plan_embeddings(model: PreTrainedModel, bits: int = 0) -> list[LayerPlan]:
    """Decide for the input embedding and the output head whether they can be packed; one entry for a shared weight.

    bits: as `plan_layers`.
    """
    plain = {
        model.get_input_embeddings(): nn.Embedding,
        model.get_output_embeddings(): nn.Linear,
    }
    owners = _weight_owners(model)
    plan: dict[str, LayerPlan] = {}
    for module, kind in plain.items():
        first, *others = owners[id(module.weight)]
        name = first.removesuffix(".weight")
        reason = plan[name].reason if name in plan else ""
        if type(module) is not kind:
            reason = f"{type(module).__name__} is not a plain nn.{kind.__name__}"
        elif 1 + len(others) > sum(other.weight is module.weight for other in plain):
            reason = f"its weight is shared with {', '.join(others)}"
        plan[name] = LayerPlan(name, tuple(module.weight.shape), not reason, reason)
    return [_checked(entry, model, 0, bits) for entry in plan.values()]


def looked_up(model: PreTrainedModel) -> str | None:
    """Name of the input embedding where 4 bits may hold it: it can be packed, is not the head too, and its rows are
    whole groups. None elsewhere.
    """
    embedding, *head = plan_embeddings(model)
    fits = embedding.quantize and embedding.shape[1] % LOOKED_UP_GROUP == 0
    return embedding.name if head and fits else None


def parameter_names(model: nn.Module) -> list[list[str]]:
    """Every parameter as the list of names it goes by; two names mean a shared weight."""
    return list(_weight_owners(model).values())


def longest_sequence(config: Any) -> int:
    """The most tokens that a model with this config reads, prompt and answer together."""
    return getattr(config.get_text_config(), "max_position_embeddings", None) or UNLIMITED


def _decoder(model: PreTrainedModel) -> nn.Module:
    """The text decoder of a multi-modal model; the model itself where it names none."""
    decoder = getattr(model, "get_decoder", lambda: None)()
    return decoder if isinstance(decoder, nn.Module) else model


def _is_stack(modules: nn.ModuleList) -> bool:
    """True for a list of identical modules that are more than one layer each."""
    first = next(iter(modules), None)
    return (
        first is not None
        and any(True for _ in first.children())
        and all(type(module) is type(first) for module in modules)
    )


def _weight_owners(model: nn.Module) -> dict[int, list[str]]:
    """id of each parameter -> every name it goes by; two names mean a shared weight."""
    owners: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name)
    return owners


def _plan_block(
    block: nn.Module, prefix: str, group_size: int, owners: dict[int, list[str]]
) -> Iterator[LayerPlan]:
    """One entry per weight matrix of a block, in module order."""
    routers = _routers(block)
    for name, module in block.named_modules():
        for parameter_name, weight in module.named_parameters(recurse=False):
            if weight.dim() < 2:  # biases and norms
                continue
            layer = f"{prefix}.{name}"
            full_name = f"{layer}.{parameter_name}"
            others = [other for other in owners[id(weight)] if other != full_name]
            if isinstance(module, nn.Linear):
                shape = (module.out_features, module.in_features)
                reason = _linear_reason(module, group_size)
                if module in routers:
                    reason = ROUTER_REASON
                elif others:
                    reason = f"its weight is shared with {others[0]}"
                yield LayerPlan(layer, shape, not reason, reason)
            else:
                out_features, in_features = weight.numel() // weight.shape[-1], weight.shape[-1]
                if isinstance(module, Conv1D):  # stored transposed
                    out_features, in_features = in_features, out_features
                reason = ROUTER_REASON if module in routers else _other_reason(module, weight.dim())
                yield LayerPlan(full_name, (out_features, in_features), False, reason)


def _checked(entry: LayerPlan, model: PreTrainedModel, group_size: int, bits: int) -> LayerPlan:
    """The entry itself, or one that skips a layer whose values do not fit into so many bits."""
    if not bits or not entry.quantize:
        return entry
    weight = model.get_parameter(f"{entry.name}.weight").detach()
    reason = Grid(bits).misfit(weight, group_size)
    return replace(entry, quantize=not reason, reason=reason)


def _routers(block: nn.Module) -> set[nn.Module]:
    """Modules beside the experts of a mixture that choose among them, or weigh a shared one: their weight has a row for
    each expert, or one row.
    """
    found: set[nn.Module] = set()
    for around in block.modules():
        experts = dict(around.named_children()).get("experts")
        if experts is None:
            continue
        rows = 1, _count(experts)
        for module in set(around.modules()) - set(experts.modules()):
            weight = getattr(module, "weight", None)
            if isinstance(weight, torch.Tensor) and weight.dim() == 2 and len(weight) in rows:
                found.add(module)
    return found


def _count(experts: nn.Module) -> int:
    """How many experts a module holds; 0 where nobody knows."""
    if isinstance(experts, nn.ModuleList):
        return len(experts)
    known = (getattr(experts, name, None) for name in ("count", "num_experts"))
    return next((value for value in known if isinstance(value, int)), 0)


def _linear_reason(linear: nn.Linear, group_size: int) -> str:
    """Why the shape of a linear layer rules it out; "" when it fits."""
    if linear.in_features % CODES_PER_BYTE:
        return f"{linear.in_features} inputs do not fill whole bytes at 2 bits"
    if group_size and linear.in_features % group_size:
        return f"{GROUP_REASON} {group_size} does not divide {linear.in_features} inputs"
    return ""


def _other_reason(module: nn.Module, dimensions: int) -> str:
    """Why a weight outside `nn.Linear` is left alone."""
    kind = type(module).__name__
    if dimensions > 2:
        return f"{kind} holds a {dimensions}-D weight, such as {STACKED_REASON}"
    return f"{kind} is not a linear layer"


def _require_most(plan: list[LayerPlan], model_name: str) -> None:
    """Refuse a plan that would leave more than half of the block weights as they are."""
    total = sum(out * inputs for out, inputs in (entry.shape for entry in plan))
    kept = sum(out * inputs for out, inputs in (e.shape for e in plan if e.quantize))
    if kept and 2 * kept >= total:
        return
    reasons = dict.fromkeys(f"{entry.name}: {entry.reason}" for entry in plan if not entry.quantize)
    raise UserError(
        "nothing_to_quantize",
        f"Only {kept} of {total} block weights of {model_name} can be quantized"
        f" ({'; '.join(list(reasons)[:SHOWN_REASONS]) or 'it has no linear layers'}).",
        _hint(plan),
    )


def _hint(plan: list[LayerPlan]) -> str:
    """What helps where too little of a model can be quantized, by the reason that most weights are skipped for."""
    weights: Counter[str] = Counter()
    for entry in plan:
        weights[entry.reason] += entry.shape[0] * entry.shape[1]
    del weights[""]
    reason = weights.most_common(1)[0][0] if weights else ""
    if GROUP_REASON in reason:
        return "Set group_size to 0 or to a divisor of the layer widths."
    if STACKED_REASON in reason:
        return (
            "This family stacks its experts in a way that is not known here; choose another mixture of experts, such"
            " as Mixtral, Qwen3-MoE or gpt-oss, or a dense model."
        )
    return "Choose a model whose blocks consist of linear layers, such as Llama, Qwen or Mistral."
