"""Parts of a model put together again give the model."""

import pytest
import torch

from tests.unit.models.test_structure import STYLES, build
from upq.models import block_calls, decoder_blocks, head, last_hidden


@pytest.mark.parametrize("style", STYLES)
@torch.no_grad()
def test_blocks_run_one_by_one_and_the_head_give_the_logits_of_the_model(style: str) -> None:
    model = build(STYLES[style][0]).eval()
    ids = torch.randint(6, 262, (2, 20), generator=torch.Generator().manual_seed(0))
    expected = model(input_ids=ids, use_cache=False).logits

    hidden, calls = block_calls(model, ids)
    for block, call in zip(decoder_blocks(model)[1], calls, strict=True):
        hidden = call.run(block, hidden)
    torch.testing.assert_close(head(model)(model.get_decoder().norm(hidden)), expected)
    torch.testing.assert_close(head(model)(last_hidden(model, ids)), expected)


@torch.no_grad()
def test_recording_the_calls_leaves_the_blocks_as_they_were() -> None:
    model = build(STYLES["gemma2"][0]).eval()
    ids = torch.arange(6, 16)[None]
    before = last_hidden(model, ids)
    block_calls(model, ids)
    assert torch.equal(last_hidden(model, ids), before)


@pytest.mark.parametrize("style", ["llama", "gemma3"])
@torch.no_grad()
def test_padding_on_the_right_does_not_change_what_real_tokens_see(style: str) -> None:
    model = build(STYLES[style][0]).eval()
    ids = torch.randint(6, 262, (1, 12), generator=torch.Generator().manual_seed(0))
    padded = torch.cat([ids, torch.zeros(1, 9, dtype=torch.int64)], 1)
    torch.testing.assert_close(last_hidden(model, padded)[:, :12], last_hidden(model, ids))
