"""Training on an NVIDIA GPU: blocks lent from the CPU, and memory that does not grow with them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.support.helpers import RecordingContext, examples, tiny_config
from upq.config import BlockwiseConfig, Int2Config
from upq.data import collate
from upq.layers import INT2, Form, Forms
from upq.models import LoadedModel, last_hidden, place, placement, plan_layers
from upq.quantize import pipeline
from upq.training import BlockResult, Reconstruction, reconstruct

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no NVIDIA GPU here"),
]
TRAINING = BlockwiseConfig(tokens=1, epochs=2, weight_lr=0.05, scale_lr=0.01)


def model_of(blocks: int, device: str) -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=262,
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=blocks,
        num_attention_heads=4,
        num_key_value_heads=4,
    )
    model = LlamaForCausalLM(shape)
    place(model, torch.device(device), torch.bfloat16)
    return model.eval().requires_grad_(False)


def reconstructed(blocks: int, home: str, folder: Path) -> tuple[BlockResult, list[float], int]:
    """(result, errors of the blocks, peak bytes on the GPU) of a model that is at home on CPU or GPU."""
    model = model_of(blocks, home)
    names = [layer.name for layer in plan_layers(model, 64)]
    start = {name: model.get_parameter(f"{name}.weight").detach() for name in names}
    task = Reconstruction(
        model, "int2", Forms(Form(INT2, 64)), Int2Config(group_size=64, blockwise=TRAINING), start
    )
    context = RecordingContext(folder)
    batches = [collate(examples(8, 128, seed), home) for seed in range(6)]
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    cuda = torch.device("cuda")
    result = reconstruct(task, batches, context, device=cuda)
    errors = list(context.curve("int2_block_after").values())
    return result, errors, torch.cuda.max_memory_allocated()


@pytest.mark.slow
def test_blocks_lent_from_the_cpu_are_reconstructed_like_those_on_the_gpu(tmp_path: Path) -> None:
    _, here, _ = reconstructed(2, "cuda", tmp_path)
    _, lent, _ = reconstructed(2, "cpu", tmp_path)
    assert lent == pytest.approx(here, rel=0.05)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_blocks(tmp_path: Path) -> None:
    reconstructed(1, "cpu", tmp_path)  # what is allocated once for the process
    _, _, few = reconstructed(2, "cpu", tmp_path)
    _, _, many = reconstructed(8, "cpu", tmp_path)
    assert many == pytest.approx(few, rel=0.02)


@torch.no_grad()
def test_a_model_that_the_cpu_lends_gives_the_same_bits(
    tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = torch.device("cuda")
    ids = collate(examples(4), cuda).ids
    here = last_hidden(placement.placed_copy(tiny.model, cuda), ids)
    monkeypatch.setattr(placement, "is_large", lambda *_: True)
    assert torch.equal(here, last_hidden(placement.placed_copy(tiny.model, cuda), ids))


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"int2__distill__teacher": "int4"}], ids=str)
def test_a_run_whose_model_the_cpu_lends_ends_like_any_other(
    changes: dict[str, str], tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for is_lent in (False, True):
        monkeypatch.setattr(placement, "is_large", lambda *_, lent=is_lent: lent)
        context = RecordingContext(tmp_path / str(is_lent))
        config = tiny_config(tiny_model_dir, device="cuda", data__answer_temperature=0.0, **changes)
        pipeline.run_quantization(config, context)
        assert any("stays in CPU memory" in line for line in context.lines) is is_lent
        found.append({row["label"]: row["kl"] for row in context.rows})
    # A lent model decodes by transformers and not in a graph, so its greedy answers, 48 tokens of a random model, may
    # differ, and with them what is measured on them: 11 % were seen on an H200.
    here, lent = found
    assert lent == pytest.approx(here, rel=0.3, abs=1e-3)
