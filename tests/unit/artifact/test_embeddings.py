"""An embedding of 4 bits is looked up as its codes say, in every engine and export, and nothing else changes."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig

from tests.support.gguf_export_cases import rounded, small_model
from tests.support.grids import round_trip
from tests.unit.models.test_structure import SHAPE, build
from upq.artifact import Artifact, assembly
from upq.artifact.embeddings import LOOKED_UP, kept_wider, packed_embeddings
from upq.config import PrecisionConfig, RunConfig
from upq.decode import NativeEngine
from upq.export import export, format_named, opened
from upq.layers import INT8, grid_of
from upq.models import LoadedModel, looked_up, plan_layers
from upq.quantize.absorb import absorbed

SIGNED4 = grid_of("signed", 4)
EMBEDDING, HEAD = "model.embed_tokens", "lm_head"


def artifact_of(loaded: LoadedModel, bits: Any = 4) -> Artifact:
    """The model with its linears at INT4 in groups of 32, embedding and head in so many bits."""
    packed = {
        layer.name: rounded(loaded, layer.name, SIGNED4, 32)
        for layer in plan_layers(loaded.model, 32)
    }
    return assembly.build("INT4", packed, loaded, RunConfig(embedding_bits=bits))


def twin_of(loaded: LoadedModel) -> Any:
    """The model with every weight replaced by what its codes stand for."""
    twin = copy.deepcopy(loaded.model)
    for layer in plan_layers(twin, 32):
        weight = twin.get_parameter(f"{layer.name}.weight")
        weight.data = round_trip(SIGNED4, weight.data, *SIGNED4.fit(weight.data, 32, "absmax"))
    embedding, head = (twin.get_parameter(f"{name}.weight") for name in (EMBEDDING, HEAD))
    embedding.data = round_trip(LOOKED_UP, embedding.data, *LOOKED_UP.fit(embedding.data, 32))
    head.data = round_trip(INT8, head.data, *INT8.fit(head.data, 0, "absmax"))
    return twin


@pytest.fixture
def untied(tmp_path: Path) -> LoadedModel:
    return small_model(tmp_path / "untied", tie_word_embeddings=False)


@torch.no_grad()
def test_the_engines_read_what_the_codes_stand_for(untied: LoadedModel) -> None:
    model, _ = assembly.assemble(artifact_of(untied))
    ids = list(range(6, 40))
    wanted = twin_of(untied)(input_ids=torch.tensor([ids])).logits[0, -1]
    torch.testing.assert_close(model(input_ids=torch.tensor([ids])).logits[0, -1], wanted)
    native = NativeEngine(model, exact=True).session(1, len(ids)).prefill(0, ids)
    torch.testing.assert_close(native, wanted, atol=1e-2, rtol=1e-2)  # keys and values are float16


def test_the_manifest_counts_linears_alone_and_says_4_bits(untied: LoadedModel) -> None:
    small, wide = artifact_of(untied, 4), artifact_of(untied, 8)
    rows, columns = untied.model.get_parameter(f"{EMBEDDING}.weight").shape
    assert small.manifest["layers"][EMBEDDING] == {
        "bits": 4, "zero": 8.0, "shape": [rows, columns], "groups": columns // 32,
    }  # fmt: skip
    for key in ("bits_per_weight", "quantized_weights", "format_version"):
        assert small.manifest[key] == wide.manifest[key]
    saved = rows * (columns + 2) - rows * (columns // 2 + 2 * columns // 32)
    tensors = [sum(one.nbytes for one in artifact.tensors.values()) for artifact in (wide, small)]
    assert tensors[0] - tensors[1] == saved
    assert len(opened(small, "small").linears) == len(plan_layers(untied.model, 32))


def test_a_matrix_that_is_the_head_too_stays_at_8_bits(tiny: LoadedModel) -> None:
    small, wide = (packed_embeddings(tiny.model, bits) for bits in (4, 8))
    assert small.keys() == wide.keys() == {EMBEDDING}
    assert torch.equal(small[EMBEDDING].codes, wide[EMBEDDING].codes)
    assert kept_wider(tiny.model, 4) == [
        f"{EMBEDDING} (262, 64) stays in 8 bits: it is the head too"
    ]
    assert kept_wider(tiny.model, 8) == []


def test_an_absorbed_rotation_parts_the_two(tiny: LoadedModel) -> None:
    model = absorbed(tiny.model, PrecisionConfig(rotation="absorbed"), 0)
    found = {name: weight.bits for name, weight in packed_embeddings(model, 4).items()}
    assert found == {EMBEDDING: 4, HEAD: 8}


def test_rows_that_are_no_groups_stay_at_8_bits() -> None:
    shape: dict[str, Any] = {**SHAPE, "hidden_size": 48, "head_dim": 16}
    narrow = build(LlamaConfig(**shape))
    assert looked_up(narrow) is None
    assert {weight.bits for weight in packed_embeddings(narrow, 4).values()} == {8}
    assert kept_wider(narrow, 4) == [
        f"{EMBEDDING} (262, 48) stays in 8 bits: its rows are no groups of 32"
    ]


@pytest.mark.parametrize(
    "name", ["gguf", "mlx-fp32", "packed", "safetensors", "compressed-tensors"]
)
def test_it_leaves_by_every_door(untied: LoadedModel, tmp_path: Path, name: str) -> None:
    model = opened(artifact_of(untied), "untied")
    offer = format_named(name).offer(model)
    made = export(model, name, tmp_path / "out")
    assert made.found, "every tensor was read back and compared"
    if name == "gguf":
        assert "rounded" not in offer.exactness
