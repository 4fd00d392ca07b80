"""A block is lent as a copy, blocks that wait elsewhere come back, and nothing changes a bit."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch

from tests.helpers import examples
from upq.data import collate
from upq.forward import last_hidden
from upq.models import LoadedModel
from upq.offload import blocks_away, on_device, twin
from upq.structure import decoder_blocks

CPU = torch.device("cpu")


def devices(module: torch.nn.Module) -> set[str]:
    return {one.device.type for one in module.parameters()}


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


def test_a_twin_shares_only_what_does_not_change(tiny: LoadedModel) -> None:
    model, name = tiny.model, "model.layers.0.mlp.up_proj"
    copied = twin(model, [name])
    assert copied.get_submodule(name) is not model.get_submodule(name)
    shared = {
        path
        for path, one in copied.named_parameters(remove_duplicate=False)
        if one is model.get_parameter(path)
    }
    assert shared == {f"{name}.weight", "model.embed_tokens.weight", "lm_head.weight"}
