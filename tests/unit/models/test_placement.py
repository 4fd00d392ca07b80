"""A block is lent as a copy, blocks that wait elsewhere come back, and nothing changes a bit."""

from __future__ import annotations

import copy
from contextlib import suppress
from typing import Any

import pytest
import torch

from tests.support.helpers import examples
from upq.data import collate
from upq.layers import INT4
from upq.models import (
    LoadedModel,
    blocks_away,
    copy_to_quantize,
    decoder_blocks,
    is_lent,
    last_hidden,
    on_device,
    placement,
)
from upq.models.placement import is_large
from upq.training import packed_teacher

CPU, META = torch.device("cpu"), torch.device("meta")


def devices(module: torch.nn.Module) -> set[str]:
    return {parameter.device.type for parameter in module.parameters()}


def test_a_block_is_lent_as_a_copy_and_stays_where_it_is(tiny: LoadedModel) -> None:
    block = decoder_blocks(tiny.model)[1][0]
    assert on_device(block, CPU) is block
    assert devices(on_device(block, torch.device("meta"))) == {"meta"}
    assert devices(block) == {"cpu"}


def test_only_the_blocks_leave(tiny: LoadedModel) -> None:
    model: Any = tiny.model
    with suppress(NotImplementedError), blocks_away(model, "meta"):
        assert devices(decoder_blocks(model)[1]) == {"meta"}
        assert devices(model.get_output_embeddings()) == devices(model.model.norm) == {"cpu"}
    # What went to "meta" has no values to come back with: an error that does not matter here.


@torch.no_grad()
def test_blocks_that_were_away_give_the_same_bits(tiny: LoadedModel) -> None:
    ids = collate(examples(2)).ids
    before = last_hidden(tiny.model, ids)
    with blocks_away(tiny.model):
        pass
    assert torch.equal(before, last_hidden(tiny.model, ids))


@pytest.fixture
def lent(tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The tiny model as one that is too large for a device without values, so that only shapes and places show."""
    monkeypatch.setattr(placement, "is_large", lambda *_: True)
    return placement.placed_copy(tiny.model, META)


def run(model: Any, block: Any) -> torch.Tensor:
    hidden = torch.empty(2, 8, 64, dtype=model.dtype, device=META)
    turns = torch.empty(1, 8, block.self_attn.head_dim, dtype=model.dtype, device=META)
    return block(hidden, position_embeddings=(turns, turns))


def test_lent_blocks_compute_on_the_device_and_stay_on_the_cpu(lent: Any) -> None:
    blocks = decoder_blocks(lent)[1]
    before = {name: parameter.clone() for name, parameter in blocks.named_parameters()}
    seen: list[str] = []

    def note(module: torch.nn.Module, *_: Any) -> None:
        seen.extend(parameter.device.type for parameter in module.parameters(recurse=False))

    for module in blocks.modules():
        module.register_forward_hook(note, prepend=True)
    assert is_lent(lent)
    assert all(run(lent, block).device == META for block in blocks)
    assert seen == ["meta"] * len(before)
    after = dict(blocks.named_parameters())
    assert all(torch.equal(after[name], one) for name, one in before.items())


def test_lent_weights_come_home_when_a_block_fails(lent: Any) -> None:
    blocks: Any = decoder_blocks(lent)[1]

    def fail(*_: Any) -> None:
        raise RuntimeError("out of memory")

    blocks[0].mlp.up_proj.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        run(lent, blocks[0])
    assert devices(blocks) == {"cpu"}


def test_a_copy_of_a_lent_block_keeps_its_weights_on_the_device_and_can_learn(lent: Any) -> None:
    block = on_device(decoder_blocks(lent)[1][0], META).requires_grad_()
    before = dict(block.named_parameters())
    run(lent, block).sum().backward()
    assert dict(block.named_parameters()) == before
    assert all(one.grad is not None and one.device == META for one in before.values())
    assert devices(decoder_blocks(lent)[1]) == {"cpu"}


def test_students_and_packed_teachers_of_a_lent_model_are_on_the_device(lent: Any) -> None:
    name = "model.layers.0.mlp.up_proj"
    weight = lent.get_parameter(f"{name}.weight")
    packed = {name: INT4.pack(weight.float(), *INT4.fit(weight.float(), 64, "absmax"))}
    assert devices(packed_teacher(lent, packed, {})) == {"meta"}


def test_a_model_is_lent_where_it_takes_more_than_half_of_what_is_free(
    tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 2 * sum(parameter.numel() for parameter in tiny.model.parameters())
    cuda = torch.device("cuda")
    for free, large in ((2 * size, False), (2 * size - 1, True)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, free=free: (free, 0))
        assert is_large(tiny.model, torch.bfloat16, cuda) is large
    assert not is_large(tiny.model, torch.bfloat16, CPU)


def test_a_copy_to_quantize_shares_only_what_does_not_change(tiny: LoadedModel) -> None:
    model, name = tiny.model, "model.layers.0.mlp.up_proj"
    copied = copy_to_quantize(model, [name])
    assert copied.get_submodule(name) is not model.get_submodule(name)
    shared = {
        path
        for path, parameter in copied.named_parameters(remove_duplicate=False)
        if parameter is model.get_parameter(path)
    }
    assert shared == {f"{name}.weight", "model.embed_tokens.weight", "lm_head.weight"}


@pytest.mark.parametrize("fails", [False, True])
def test_a_model_of_16_bits_computes_in_float32_for_a_while(tiny: LoadedModel, fails: bool) -> None:
    ids, model = torch.arange(8, 20).unsqueeze(0), tiny.model.bfloat16()
    kept = list(model.parameters())
    wide = copy.deepcopy(model).float()
    with suppress(ZeroDivisionError), placement.in_float32(model):
        assert torch.equal(model(input_ids=ids).logits, wide(input_ids=ids).logits)
        if fails:
            raise ZeroDivisionError
    assert all(now is before for now, before in zip(model.parameters(), kept, strict=True))
    assert model(input_ids=ids).logits.dtype == torch.bfloat16
