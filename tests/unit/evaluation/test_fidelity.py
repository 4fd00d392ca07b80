"""Fidelity against a naive loop over single sequences, and against the teacher itself."""

import copy
import math
import statistics
from typing import Any

import pytest
import torch

from tests.support.grids import damaged
from tests.support.helpers import examples
from upq.data import Example
from upq.errors import UserError
from upq.evaluation import Reference, fidelity
from upq.layers import INT8, PackedEmbedding, PackedLinear, memory_bytes
from upq.models import LoadedModel

DATA = examples(7, 30)


def check() -> None:
    return


@torch.no_grad()
def naive(teacher: Any, model: Any, data: list[Example]) -> dict[str, float]:
    """What is measured, one sequence and one position at a time, in float64."""
    kls: list[float] = []
    agreed: list[int] = []
    same = surprise = 0.0
    for one in data:
        ids = torch.tensor([one.ids])
        p = teacher(input_ids=ids).logits[0].double().softmax(-1)
        q = model(input_ids=ids).logits[0].double().softmax(-1)
        agree = (p.argmax(-1) == q.argmax(-1))[one.counted_from - 1 : -1].tolist()
        agreed.append([*agree, False].index(False))
        for at in range(one.counted_from - 1, len(one.ids) - 1):
            kls.append((p[at] * (p[at] / q[at]).log()).sum().item())
            same += float(p[at].argmax() == q[at].argmax())
            surprise -= q[at, one.ids[at + 1]].log().item()
    return {
        "kl": sum(kls) / len(kls),
        "top1": same / len(kls),
        "ppl": math.exp(surprise / len(kls)),
        "tokens": len(kls),
        "kl_p95": torch.tensor(kls).quantile(0.95).item(),
        "agreed_mean": statistics.mean(agreed),
        "agreed_median": statistics.median(agreed),
        "answers": len(data),
    }


def test_the_teacher_measures_itself_as_perfect(tiny: LoadedModel) -> None:
    reference = Reference(tiny.model, DATA, check)
    for model in (tiny.model, copy.deepcopy(tiny.model)):
        found = reference.measure(model, check)
        assert found.kl == pytest.approx(0.0, abs=1e-7)
        assert found.kl_p95 == pytest.approx(0.0, abs=1e-6)
        assert found.top1 == 1.0
        assert found.ppl > 1.0
        assert found.agreed_mean == found.tokens / len(DATA), "every answer counts whole"
        assert found.tokens == sum(one.counted for one in DATA)


def test_a_quantized_model_measures_as_a_naive_loop_says(tiny: LoadedModel) -> None:
    model = damaged(tiny.model)
    found = Reference(tiny.model, DATA, check).measure(model, check)
    expected = naive(tiny.model, model, DATA)
    assert expected["kl"] > 0.01
    assert 0 < expected["agreed_mean"] < expected["tokens"] / len(DATA)
    assert found.kl_low < found.kl < found.kl_high
    for name, value in expected.items():
        assert getattr(found, name) == pytest.approx(value, rel=1e-3), name


def test_batching_and_padding_on_the_right_do_not_matter(
    tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data = damaged(tiny.model), [*DATA, Example(tuple(range(10, 110)), 5)]
    together = Reference(tiny.model, data, check).measure(model, check)
    monkeypatch.setattr(fidelity, "BATCH_TOKENS", 1)
    alone_reference = Reference(tiny.model, data, check)
    assert len(alone_reference.batches) == len(data)
    alone = alone_reference.measure(model, check)
    for name in ("kl", "kl_p95", "top1", "ppl", "tokens", "agreed_mean", "agreed_median"):
        assert getattr(together, name) == pytest.approx(getattr(alone, name), rel=1e-4)


def test_a_16_bit_model_measured_in_other_batches_is_itself(
    tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = copy.deepcopy(tiny.model).bfloat16()
    together = Reference(model, DATA, check)
    monkeypatch.setattr(fidelity, "BATCH_TOKENS", 1)
    alone = Reference(model, DATA, check)
    alone.hidden = list(torch.cat(together.hidden).split([len(part) for part in alone.hidden]))
    found = alone.measure(copy.deepcopy(model), check)
    assert found.kl < 1e-6
    assert found.top1 == 1.0


@torch.no_grad()
def test_logits_of_a_16_bit_model_are_not_rounded_before_they_are_measured(
    tiny: LoadedModel,
) -> None:
    model = copy.deepcopy(tiny.model).bfloat16()
    other = copy.deepcopy(model)
    other.lm_head = torch.nn.Linear(64, 262, bias=False, dtype=torch.bfloat16)  # not tied
    other.lm_head.weight.copy_(model.lm_head.weight * 1.01)
    found = Reference(model, DATA, check).measure(other, check)
    states = torch.cat(Reference(model, DATA, check).hidden).double()
    log_p, log_q = (
        (states @ one.lm_head.weight.double().T).log_softmax(-1) for one in (model, other)
    )
    expected = (log_p.exp() * (log_p - log_q)).sum(-1).mean().item()
    assert found.kl == pytest.approx(expected, rel=1e-3)


def test_a_model_without_finite_logits_is_refused(tiny: LoadedModel) -> None:
    reference, model = Reference(tiny.model, DATA, check), copy.deepcopy(tiny.model)
    with torch.no_grad():
        model.model.norm.weight[0] = torch.nan
    with pytest.raises(UserError) as caught:
        reference.measure(model, check)
    assert caught.value.code == "diverged"


def test_a_row_holds_the_measurement_and_what_is_added(tiny: LoadedModel) -> None:
    found = Reference(tiny.model, DATA, check).measure(tiny.model, check)
    row = found.row("RTN INT2", "INT2", bits_per_weight=2.25)
    assert row["label"] == "RTN INT2"
    assert (row["precision"], row["bits_per_weight"], row["top1"]) == ("INT2", 2.25, 1.0)


def test_8_bit_embeddings_cost_the_bundled_model_next_to_nothing(bundled: LoadedModel) -> None:
    text = (
        "The capital of France is Paris. It lies on the Seine, and two million people live there."
    )
    data = [Example(tuple(bundled.tokenizer(text)["input_ids"]), 1)]
    weight = bundled.model.get_parameter("model.embed_tokens.weight")
    packed = INT8.pack(weight, *INT8.fit(weight, 0, "absmax"))
    twin = copy.deepcopy(bundled.model)
    twin.model.embed_tokens = PackedEmbedding(packed, weight.dtype)
    twin.lm_head = PackedLinear(packed)
    found = Reference(bundled.model, data, check).measure(twin, check)
    assert 0 < found.kl < 0.005
    assert memory_bytes(bundled.model) - memory_bytes(twin) == weight.nbytes - packed.size_bytes
