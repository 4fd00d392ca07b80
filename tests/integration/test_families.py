"""Families of models from folder to chat: what docs/families.md says of each is what happens."""

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.families import FAMILIES, family_folder, family_ids, same_choices
from tests.support.grids import round_trip
from tests.support.helpers import RecordingContext, examples, tiny_config
from upq.artifact.assembly import assemble
from upq.config import METHODS
from upq.decode import Decoding, Reader, engine_for, stream
from upq.errors import UserError
from upq.evaluation import Reference
from upq.layers import INT8
from upq.models import head, last_hidden, load, plan_layers
from upq.models.experts import mixtures
from upq.quantize.pipeline import run_quantization

PAGE = Path(__file__).resolve().parents[2] / "docs" / "families.md"
SUPPORTED = [kind for kind, family in FAMILIES.items() if not family.refused]
#: Families that were once accepted and failed later, and a mixture; the others are run by `make test-all` alone.
QUICK = {"cohere", "gptj", "llama4_text", "mixtral", "olmo", "opt"}
PARAMETERS = [
    pytest.param(kind, marks=[] if kind in QUICK else [pytest.mark.slow]) for kind in SUPPORTED
]
#: The largest mean KL of INT4 in nats that a tiny random model may show, and of INT8 where everything else is right.
LARGEST_INT4, LARGEST_INT8 = 0.05, 1e-3
#: The same of a mixture of experts, whose random router is close to choosing others for some of the 50 tokens.
LARGEST_MIXED_INT4 = 0.1


@pytest.mark.parametrize("kind", PARAMETERS)
def test_a_family_is_quantized_measured_and_answers(kind: str, tmp_path: Path) -> None:
    folder = family_folder(tmp_path / kind, kind)
    model = load(str(folder), dtype=torch.float32).model
    _logits_are_the_models_own(model)
    largest = LARGEST_MIXED_INT4 if any(mixtures(model)) else LARGEST_INT4

    context = RecordingContext(tmp_path / "run")
    run_quantization(tiny_config(folder, "rotated_upq", embedding_bits=8), context)

    kl = {row["label"]: row["kl"] for row in context.rows}
    assert abs(kl["FP16"]) < 1e-6
    assert 0 < kl["INT4"] < largest
    assert kl["INT4"] < kl["INT2"]
    for artifact in context.artifacts.values():
        model, tokenizer = assemble(artifact)
        engine = engine_for(model, torch.device("cpu"))
        says = [{"role": "user", "content": "Hello"}]
        *_, last = stream(
            Reader(engine), tokenizer, says, Decoding(max_new_tokens=4), lambda: False
        )
        assert last.done
        assert last.tokens >= 1


#: What a large model is trained with.
SAVING = {
    f"int2__distill__{name}": value
    for name, value in {"optimizer_bits": 8, "checkpointing": True, "teacher": "int4"}.items()
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "changes"),
    [("rotated_upq", SAVING), *((method, {}) for method in METHODS if method != "rotated_upq")],
)
def test_a_mixture_of_experts_goes_through_every_method(
    method: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    """One whose experts are stored (in, out), with biases."""
    folder, context = family_folder(tmp_path / "gpt_oss", "gpt_oss"), RecordingContext(tmp_path)
    run_quantization(tiny_config(folder, method, **changes), context)
    kl = {row["label"]: row["kl"] for row in context.rows}
    assert 0 < kl["INT4"] < kl["INT2"]
    for artifact in context.artifacts.values():
        assert "model.layers.1.mlp.experts.3.down_proj" in artifact.manifest["layers"]
        assert "model.layers.1.mlp.router.weight" in artifact.tensors
        logits = assemble(artifact)[0](input_ids=family_ids()).logits
        assert logits.isfinite().all()


@torch.no_grad()
def _logits_are_the_models_own(model: Any) -> None:
    """And rounding the layers to 8 bits hardly changes them, where routers choose as before."""
    ids = family_ids()
    own = model(input_ids=ids, use_cache=False).logits
    torch.testing.assert_close(head(model)(last_hidden(model, ids)), own)
    rounded = copy.deepcopy(model)
    for layer in plan_layers(model, 32):
        if layer.quantize:
            weight = rounded.get_parameter(f"{layer.name}.weight")
            weight.copy_(round_trip(INT8, weight, *INT8.fit(weight, 32)))
    choices = same_choices(model, rounded)
    reference = Reference(model, examples(4), lambda: None)
    assert any(choices.values()) == any(mixtures(model))
    assert 0 < reference.measure(rounded, lambda: None).kl < LARGEST_INT8
    assert not any(choices.values()), "each was used"


@pytest.mark.parametrize("kind", [kind for kind in FAMILIES if kind not in SUPPORTED])
def test_a_family_that_cannot_be_quantized_is_refused_before_any_work(
    kind: str, tmp_path: Path
) -> None:
    folder = family_folder(tmp_path / kind, kind)
    context = RecordingContext(tmp_path / "run")
    with pytest.raises(UserError) as caught:
        run_quantization(tiny_config(folder, "rotated_upq"), context)
    assert caught.value.code == FAMILIES[kind].refused
    assert [name for name, _ in context.stages] == ["load"]
    assert not context.points
    assert not context.answers


def test_weights_too_small_for_float16_scales_stay_and_are_named_in_the_log(
    tmp_path: Path,
) -> None:
    def shrink(model: Any) -> None:
        model.model.layers[1].mlp.down_proj.weight.mul_(1e-6)

    folder = family_folder(tmp_path / "llama", "llama", shrink, dtype=torch.float32)
    context = RecordingContext(tmp_path / "run")
    run_quantization(tiny_config(folder, "rotated_upq"), context)
    (line,) = [line for line in context.lines if line.startswith("INT4 skips")]
    assert "model.layers.1.mlp.down_proj" in line
    assert "too small for scales in float16" in line
    for artifact in context.artifacts.values():
        assert "model.layers.1.mlp.down_proj" not in artifact.manifest["layers"]
        assert "model.layers.0.mlp.down_proj" in artifact.manifest["layers"]


def test_the_page_names_the_result_of_each_family() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (?:(supported)|`(\w+)`) \|", PAGE.read_text(), re.MULTILINE)
    assert {kind: refused for kind, _, refused in rows} == {
        kind: family.refused for kind, family in FAMILIES.items()
    }
