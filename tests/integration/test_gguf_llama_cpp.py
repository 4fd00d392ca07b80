"""What we write as GGUF is loaded by llama.cpp itself and means the same there.

Needs the optional extra (requirements-export.txt); skipped without it.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from bench.agreement import divergence
from bench.llama_cpp import LlamaCpp, library
from bench.rounding import ENGINE, TWIN, compared, unpacked
from kernels.packing import PackedWeight
from kernels.reference import dequantize
from tests.support.gguf_export_cases import (
    decoded_model,
    packed_model,
    rounded,
    small_model,
)
from tests.unit.export.test_gguf_blocks import PLAIN_GRIDS, plain_grid, two_levels
from tests.unit.export.test_gguf_export import LLAMA3
from tests.unit.export.test_gguf_vocabulary import sentencepiece
from upq.artifact import assembly
from upq.config import RunConfig
from upq.export import PackedModel, export, opened
from upq.export.gguf_blocks import encoded
from upq.export.gguf_kinds import kind_of_packed
from upq.layers import grid_of
from upq.models import LoadedModel, load, plan_layers

pytest.importorskip("xllamacpp", reason="xllamacpp is not installed")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.filterwarnings("ignore")]

IDS = torch.randint(6, 262, (200,), generator=torch.Generator().manual_seed(0)).tolist()
#: Layers of the bundled model that are INT2 in one of the cases.
TWO_BITS = ("layers.8.mlp.up_proj", "layers.16.self_attn.o_proj", "layers.24.mlp.gate_proj")
#: Config of a small model -> what is compared after 200 tokens.
SMALL: dict[str, dict[str, Any]] = {
    "llama": {"family": "llama"},
    "llama with biases": {"family": "llama", "attention_bias": True, "mlp_bias": True},
    "llama with a head of its own": {"family": "llama", "tie_word_embeddings": False},
    "mistral": {"family": "mistral"},
    "qwen2": {"family": "qwen2"},
    "qwen3": {"family": "qwen3"},
    "llama3 positions": {"family": "llama", "rope_parameters": LLAMA3},
    "linear positions": {
        "family": "llama",
        "rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0},
    },
    "yarn positions": {
        "family": "qwen2",
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 1e4,
            "factor": 4.0,
            "original_max_position_embeddings": 128,
        },
    },
}


def written(model: PackedModel, folder: Path) -> Path:
    [file] = [path for path in export(model, "gguf", folder).files if path.suffix == ".gguf"]
    return file


def test_this_llama_cpp_does_not_know_metadata_of_rotations() -> None:
    """When this fails, rotated layers can leave after all: see what docs/export.md says of them."""
    compiled = Path(library()._name).read_bytes()
    assert b"general.architecture" in compiled, (
        "names of metadata are not found in the library at all"
    )
    assert b"prism.hadamard" not in compiled


@pytest.mark.parametrize("case", [*PLAIN_GRIDS, "two levels"])
def test_the_code_of_llama_cpp_decodes_our_blocks_exactly(case: str) -> None:
    packed: PackedWeight = (
        two_levels() if case == "two levels" else plain_grid(*PLAIN_GRIDS[case][:3])
    )
    kind, _ = kind_of_packed(packed)
    data = encoded(packed, kind)
    values = numpy.empty(packed.shape, numpy.float32)
    decode = library()[f"dequantize_row_{kind.name.replace('Q', 'q')}"]
    decode(
        data.ctypes.data_as(ctypes.c_void_p),
        values.ctypes.data_as(ctypes.c_void_p),
        ctypes.c_int64(values.size),
    )
    numpy.testing.assert_array_equal(values, dequantize(packed).numpy())


@pytest.mark.parametrize("case", SMALL)
def test_a_small_model_in_llama_cpp_gives_the_logits_of_transformers(
    case: str, tmp_path: Path
) -> None:
    model = packed_model(small_model(tmp_path / "small", **SMALL[case]), grid_of("signed", 4), 32)
    plain = unpacked(model)
    with torch.inference_mode():
        logits = decoded_model(plain)(input_ids=torch.tensor([IDS])).logits[0, -1]
    found = LlamaCpp(written(plain, tmp_path / "out")).log_probabilities(IDS, len(logits))
    assert divergence(logits.log_softmax(-1), found) < 1e-4


@pytest.mark.parametrize(
    ("kind", "bits", "group", "width"),
    [
        ("signed", 4, 32, 64),
        ("signed", 2, 64, 64),
        ("odd", 4, 64, 64),
        ("odd", 2, 64, 64),
        ("q2_k", 2, 16, 256),
    ],
    ids=["Q4_0", "Q2_0", "Q5_0", "Q4_0 with two bits", "Q2_K"],
)
def test_a_small_model_of_each_type_multiplies_alike_in_llama_cpp(
    kind: str, bits: int, group: int, width: int, tmp_path: Path
) -> None:
    sizes: dict[str, Any] = {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "head_dim": width // 4,
    }
    model = packed_model(small_model(tmp_path / "small", **sizes), grid_of(kind, bits), group)
    with torch.inference_mode():
        logits = decoded_model(unpacked(model))(input_ids=torch.tensor([IDS])).logits[0, -1]
    found = LlamaCpp(written(model, tmp_path / "out")).log_probabilities(IDS, len(logits))
    assert divergence(logits.log_softmax(-1), found) < 0.02


@pytest.fixture(scope="module", params=["INT4", "INT4 with INT2"])
def real(request: pytest.FixtureRequest, bundled: LoadedModel) -> PackedModel:
    """The bundled model in INT4, or with a few layers in INT2. All of it in INT2, without training, would be a model
    whose answers change with every rounding of an activation, so that nothing could be compared.
    """
    two_bits = TWO_BITS if request.param == "INT4 with INT2" else ()
    packed = {}
    for layer in plan_layers(bundled.model, 0):
        bits, group = (2, 64) if layer.name.endswith(two_bits) else (4, 32)
        packed[layer.name] = rounded(bundled, layer.name, grid_of("signed", bits), group)
    artifact = assembly.build("INT4", packed, bundled, RunConfig(embedding_bits=8))
    return opened(artifact, bundled.info.name)


@pytest.fixture(scope="module")
def loaded(real: PackedModel, tmp_path_factory: pytest.TempPathFactory) -> LlamaCpp:
    return LlamaCpp(written(real, tmp_path_factory.mktemp("real") / "out"))


def test_the_bundled_model_means_the_same_in_llama_cpp(
    real: PackedModel, record_property: Any
) -> None:
    figures = compared(real, prompts=20, tokens=1, threads=1)
    record_property("figures", figures)
    assert figures[TWIN].places == figures[ENGINE].places == 20
    assert figures[TWIN].kl < 0.05
    assert figures[ENGINE].kl < 0.05
    assert figures[ENGINE].same_top >= 0.8


def test_the_bundled_model_answers_in_llama_cpp(
    real: PackedModel, loaded: LlamaCpp, record_property: Any
) -> None:
    answer = loaded.chat("What is the capital of France?", 24)
    record_property("answer", answer)
    assert "Paris" in answer


def test_llama_cpp_cuts_a_text_as_our_tokenizer_does(real: PackedModel, loaded: LlamaCpp) -> None:
    _, tokenizer = assembly.assemble(real.artifact)
    text = "<|im_start|>user\nIt's 1234 o'clock,  naïve\n\n\t这是中文 🙂<|im_end|>\n<|im_start|>assistant\n"
    ids, vocabulary = tokenizer.encode(text), real.config["vocab_size"]
    found = loaded.log_probabilities(text, vocabulary)
    torch.testing.assert_close(found, loaded.log_probabilities(ids, vocabulary), rtol=0, atol=1e-6)


def test_llama_cpp_cuts_a_text_of_sentencepiece_alike(tmp_path: Path) -> None:
    tokenizer, text = sentencepiece(), "hello hell  lol é ohello"
    small_model(tmp_path / "small", vocab_size=300)
    tokenizer.save_pretrained(tmp_path / "small")
    again = load(str(tmp_path / "small"))
    model = unpacked(packed_model(again, grid_of("signed", 4), 32))
    found = LlamaCpp(written(model, tmp_path / "out"))
    ids = tokenizer.encode(text)
    assert len(ids) > 8
    torch.testing.assert_close(
        found.log_probabilities(text, 300), found.log_probabilities(ids, 300), rtol=0, atol=1e-6
    )
