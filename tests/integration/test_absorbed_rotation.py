"""Runs whose rotations are absorbed into the weights, from folder to chat: plain artifacts of the same function."""

from pathlib import Path
from typing import Any

import pytest

from tests.support.families import family_folder
from tests.support.helpers import (
    RecordingContext,
    Stop,
    digests,
    quantized,
    stop_after,
    tiny_config,
)
from upq.artifact import Artifact
from upq.artifact.assembly import assemble
from upq.config import RunConfig
from upq.decode import Decoding, Reader, stream
from upq.decode.native import NativeEngine
from upq.decode.transformers_engine import TransformersEngine
from upq.errors import UserError
from upq.quantize.estimate import estimate
from upq.quantize.pipeline import run_quantization

ABSORBED: dict[str, Any] = {"int4__rotation": "absorbed", "int2__rotation": "absorbed"}
#: Largest mean KL of INT4 of a tiny random model, in nats; in another basis than its embedding's it is above 1.
LARGEST_INT4 = 0.05


def kl(context: RecordingContext) -> dict[str, float]:
    return {row["label"]: row["kl"] for row in context.rows}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tied Llama in float16."""
    parent = tmp_path_factory.mktemp("models")
    return family_folder(parent / "llama", "llama", tie_word_embeddings=True)


@pytest.fixture(scope="module")
def config(folder: Path) -> RunConfig:
    return tiny_config(folder, "rotated_upq", embedding_bits=8, **ABSORBED)


@pytest.fixture(scope="module")
def finished(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> RecordingContext:
    """One uninterrupted run; leave it as it is."""
    return quantized(config, tmp_path_factory.mktemp("finished"))


def test_what_is_measured_is_the_distance_to_the_untouched_model(
    finished: RecordingContext, folder: Path, tmp_path: Path
) -> None:
    found = kl(finished)
    assert abs(found["FP16"]) < 1e-6
    assert 0 < found["INT4"] < LARGEST_INT4
    assert found["INT4"] < found["INT2"] < found["RTN INT2"]
    plain = quantized(tiny_config(folder, "rotated_upq", embedding_bits=8), tmp_path)
    for label in ("FP16", "RTN INT4", "RTN INT2"):
        assert kl(plain)[label] == found[label], "baselines round the untouched model"


def test_the_artifacts_are_plain_ones_with_a_head_of_their_own(
    finished: RecordingContext, config: RunConfig
) -> None:
    sizes = estimate(config, {})
    for artifact, size in (("INT4", sizes.int4_bytes), ("INT2", sizes.int2_bytes)):
        made = finished.artifacts[artifact]
        assert made.manifest["format_version"] == 4, "embedding and head"
        assert not any("hadamard_in" in entry for entry in made.manifest["layers"].values())
        assert {"lm_head", "model.embed_tokens"} < made.manifest["layers"].keys()
        assert b'"tie_word_embeddings": false' in made.files["config.json"]
        assert sum(tensor.nbytes for tensor in made.tensors.values()) == size


@pytest.mark.parametrize("precision", ["INT4", "INT2"])
def test_an_artifact_answers_alike_in_c_and_in_transformers(
    finished: RecordingContext, precision: str
) -> None:
    answers = [answer(finished.artifacts[precision], native) for native in (True, False)]
    assert answers[0] == answers[1]


def answer(artifact: Artifact, native: bool) -> str:
    model, tokenizer = assemble(artifact)
    engine = NativeEngine(model, exact=True) if native else TransformersEngine(model)
    says = [{"role": "user", "content": "Hello"}]
    *_, last = stream(Reader(engine), tokenizer, says, Decoding(max_new_tokens=8), lambda: False)
    assert last.tokens >= 1
    return last.text


@pytest.mark.parametrize("checks", [30, 46, 62])
def test_a_run_stopped_anywhere_goes_on_to_the_same_bits(
    finished: RecordingContext, config: RunConfig, tmp_path: Path, checks: int
) -> None:
    with pytest.raises(Stop):
        quantized(config, tmp_path / "run", stop_after(checks))
    assert digests(quantized(config, tmp_path / "run")) == digests(finished)


def test_int2_alone_may_be_rotated_while_int4_teaches_it(folder: Path, tmp_path: Path) -> None:
    changes = {"int2__rotation": "absorbed", "int2__distill__teacher": "int4"}
    context = quantized(
        tiny_config(folder, "rotated_upq", int4__rotation="none", **changes), tmp_path
    )
    assert kl(context)["INT4"] < LARGEST_INT4
    assert kl(context)["INT2"] < kl(context)["RTN INT2"]
    assert "lm_head" in context.artifacts["INT2"].manifest["layers"]
    assert "lm_head" not in context.artifacts["INT4"].manifest["layers"]


def test_int2_starts_from_int4_in_the_same_basis(folder: Path, tmp_path: Path) -> None:
    context = quantized(tiny_config(folder, "upq", int4__distill__tokens=0, **ABSORBED), tmp_path)
    assert kl(context)["INT4"] < LARGEST_INT4
    first = {name: value for name, at, value in context.points if not at}
    assert first["int2_block_before"] < 1, "relative to the targets: another basis would give 2"


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("gemma2", "unsupported_rotation"),
        ("olmo2", "unsupported_rotation"),
        ("phi", "unsupported_rotation"),
        ("mixtral", "unsupported_rotation"),
    ],
)
def test_a_family_that_cannot_absorb_a_rotation_is_refused_before_any_work(
    kind: str, code: str, tmp_path: Path
) -> None:
    folder = family_folder(tmp_path / kind, kind)
    context = RecordingContext(tmp_path / "run")
    with pytest.raises(UserError) as caught:
        run_quantization(tiny_config(folder, "rotated_upq", **ABSORBED), context)
    assert caught.value.code == code
    assert [name for name, _ in context.stages] == ["load"]
    assert not context.answers
