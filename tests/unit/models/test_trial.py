"""A model whose parts do not give what the model gives is refused when it is loaded."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.support.families import family_folder, family_ids, family_model
from upq.errors import UserError
from upq.models import block_calls, decoder_blocks, load, trial
from upq.models.trial import vet_parts


def refusal(model: Any) -> str:
    """The message that a model is refused with."""
    with pytest.raises(UserError) as caught:
        vet_parts(model)
    assert caught.value.code == "unsupported_arch"
    return caught.value.message


@pytest.mark.parametrize("family", ["llama", "olmo", "gptj", "opt", "llama4_text", "falcon_h1"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_a_sound_model_passes(family: str, dtype: torch.dtype) -> None:
    vet_parts(family_model(family, dtype))


@pytest.mark.parametrize("family", ["zamba2", "mamba"])
def test_a_model_that_cannot_run_block_by_block_is_refused_at_load(
    family: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as caught:
        load(str(family_folder(tmp_path, family)))
    assert caught.value.code == "unsupported_arch"


def test_a_block_that_is_called_twice_is_refused() -> None:
    model = family_model("llama")
    model.model.layers[1] = model.model.layers[0]
    assert "once each" in refusal(model)


def test_a_step_between_two_blocks_is_refused() -> None:
    model = family_model("llama")
    model.model.layers[1].register_forward_pre_hook(lambda _, inputs: (inputs[0] * 1.01,))
    assert "block 1 does not read" in refusal(model)


def test_a_decoder_that_leaves_something_else_than_the_head_reads_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = family_model("cohere")
    monkeypatch.setattr(trial, "head", lambda model: model.get_output_embeddings())
    assert "do not give its logits" in refusal(model)


def test_a_block_that_reads_a_weight_itself_is_refused_with_the_name_of_the_layer() -> None:
    model = family_model("llama")
    mlp = model.model.layers[0].mlp
    mlp.forward = lambda hidden: mlp.down_proj(
        mlp.act_fn(torch.nn.functional.linear(hidden, mlp.gate_proj.weight)) * mlp.up_proj(hidden)
    )
    assert "block 0 reads the weight of mlp.gate_proj" in refusal(model)
    assert isinstance(mlp.gate_proj, torch.nn.Linear), "the layers are back"


def test_a_block_whose_layer_reads_only_some_of_the_tokens_is_refused() -> None:
    model = family_model("llama")
    mlp = model.model.layers[1].mlp
    mlp.forward = lambda hidden: torch.cat(
        [mlp.down_proj(mlp.up_proj(hidden[:, :2])), hidden[:, 2:]], 1
    )
    assert "block 1 lets mlp.gate_proj read 0 rows for 6 tokens" in refusal(model)
    mlp.forward = lambda hidden: torch.cat(
        [mlp.down_proj(mlp.up_proj(hidden[:, :2]) * mlp.gate_proj(hidden[:, :2])), hidden[:, 2:]], 1
    )
    assert "read 2 rows for 6 tokens" in refusal(model)


def test_a_model_without_a_decoder_of_its_own_is_refused() -> None:
    model = family_model("llama")
    model.get_decoder = lambda: None
    model.base_model_prefix = "nothing"
    model.get_input_embeddings = lambda: SimpleNamespace(weight=torch.zeros(262, 64))
    assert "no decoder apart from its head" in refusal(model)


@pytest.mark.parametrize("family", ["gptj", "opt", "llama4_text"])
@torch.no_grad()
def test_blocks_run_one_by_one_enter_and_leave_what_they_do_in_the_model(family: str) -> None:
    model, ids = family_model(family), family_ids()
    left: list[torch.Tensor] = []
    blocks = decoder_blocks(model)[1]
    blocks[-1].register_forward_hook(
        lambda *given: left.append(given[2][0] if isinstance(given[2], tuple) else given[2])
    )
    model(input_ids=ids, use_cache=False)
    hidden, calls = block_calls(model, ids)
    for block, call in zip(blocks, calls, strict=True):
        hidden = call.run(block, hidden)
    torch.testing.assert_close(hidden, left[0])
