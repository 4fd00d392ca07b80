"""MLX folders hold the artifact's codes and scales, in the layout that mlx-lm reads."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from kernels.packing import unpack
from kernels.reference import group_scales
from tests.support.export_cases import (
    IDS,
    WEIGHTS,
    artifact_of,
    config_of,
    edit,
    model_of,
    rotated,
)
from tests.support.families import family_folder
from upq.errors import UserError
from upq.export import PackedModel, export, format_named, opened
from upq.export.folder import save_tensors
from upq.layers import Grid
from upq.models import LoadedModel, load

GRIDS = [
    ("odd", 4),
    ("odd", 2),
    ("signed", 4),
    ("signed", 2),
    ("integer_zero", 4),
    ("integer_zero", 2),
]
LAYER = "model.layers.0.mlp.down_proj"


@pytest.mark.parametrize(("kind", "bits"), GRIDS)
@pytest.mark.parametrize("key", ["mlx", "mlx-fp32"])
def test_words_hold_the_codes_lowest_bits_first(
    key: str, kind: str, bits: int, tiny: LoadedModel, tmp_path: Path
) -> None:
    model = model_of(tiny, kind, bits)
    tensors = load_file(export(model, key, tmp_path / "out").folder / WEIGHTS)
    words, packed = tensors[f"{LAYER}.weight"], model.layers[LAYER]
    assert (words.dtype, words.shape) == (torch.uint32, (64, 128 * bits // 32))
    codes = unpack(packed.codes, bits)
    for column in (0, 1, 17, 127):
        shifted = words[:, column * bits // 32].long() >> bits * column % 32
        assert torch.equal(shifted & 2**bits - 1, codes[:, column].long())
    scale, offset = group_scales(packed)
    dtype = torch.float16 if key == "mlx" else torch.float32
    assert torch.equal(tensors[f"{LAYER}.scales"], scale.to(dtype))
    assert torch.equal(tensors[f"{LAYER}.biases"], -offset.to(dtype))
    assert tensors["model.norm.weight"].dtype == dtype


@pytest.mark.parametrize(
    ("kind", "bits", "embedding", "found"),
    [
        ("signed", 4, Grid(8), "offsets in float16 move weights by at most 0.0"),
        ("odd", 4, None, "offsets in float16 move weights by at most 0.00"),
        ("signed", 2, None, "every weight is exactly the artifact's"),
    ],
)
def test_what_rounding_moves_is_measured(
    kind: str, bits: int, embedding: Grid | None, found: str, tiny: LoadedModel, tmp_path: Path
) -> None:
    model = model_of(tiny, kind, bits, embedding=embedding)
    assert export(model, "mlx", tmp_path / "a").found.startswith(f"read back: {found}")
    exactly = "read back: every weight is exactly the artifact's"
    assert export(model, "mlx-fp32", tmp_path / "b").found == exactly
    is_exact = found.startswith("every weight")
    assert format_named("mlx").offer(model).exactness.startswith("every weight exactly") == is_exact


def test_larger_groups_are_repeated_and_config_gives_bits_and_group_of_each_module(
    tiny: LoadedModel, tmp_path: Path
) -> None:
    model = model_of(tiny, "signed", 4, group=64)
    folder = export(model, "mlx", tmp_path / "out").folder
    quantization = config_of(folder)["quantization"]
    assert quantization == {
        "group_size": 64, "bits": 4, "model.embed_tokens": {"group_size": 64, "bits": 8}
    }  # fmt: skip
    assert config_of(folder)["quantization_config"] == quantization
    model = model_of(tiny, "signed", 4, group=0, embedding=None)
    folder = export(model, "mlx", tmp_path / "rows").folder
    assert config_of(folder)["quantization"] == {
        "group_size": 64, "bits": 4, "model.embed_tokens": False,
        **{f"model.layers.{block}.mlp.down_proj": {"group_size": 128, "bits": 4} for block in (0, 1)},
    }  # fmt: skip
    assert "model.embed_tokens.scales" not in load_file(folder / WEIGHTS)


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("weight", lambda words: words.view(torch.int32).__ixor__(1 << 30)),
        ("scales", lambda scales: scales[0].mul_(1.01)),
        ("biases", lambda biases: biases[0].mul_(1.01)),
    ],
)
@pytest.mark.parametrize("key", ["mlx", "mlx-fp32"])
def test_a_changed_tensor_is_found(
    key: str, part: str, change: Any, tiny: LoadedModel, tmp_path: Path
) -> None:
    model = model_of(tiny, "odd", 4)
    folder = export(model, key, tmp_path / "out").folder
    edit(folder, lambda tensors: change(tensors[f"{LAYER}.{part}"]))
    with pytest.raises(UserError, match=f"{LAYER} is not what the artifact holds") as caught:
        format_named(key).check(model, folder, lambda _: None)
    assert caught.value.code == "export_differs"


def test_what_mlx_cannot_hold_is_refused_in_a_sentence(tiny: LoadedModel, tmp_path: Path) -> None:
    artifacts = {
        "a scale and a minimum for every 16 inputs": artifact_of(tiny, "q2_k", 2),
        "is rotated while it runs, which MLX cannot do": rotated(artifact_of(tiny, "odd", 4), tiny),
        "has groups of 16 inputs; MLX has groups of 32, 64 and 128": artifact_of(
            tiny, "odd", 4, group=16
        ),
    }
    for message, artifact in artifacts.items():
        model = opened(artifact, "tiny")
        with pytest.raises(UserError, match=message) as caught:
            format_named("mlx").offer(model)
        assert caught.value.code == "cannot_export"
        assert caught.value.hint
    mixture = load(str(family_folder(tmp_path / "mixtral", "mixtral")))
    with pytest.raises(UserError, match="one expert of many"):
        format_named("mlx").offer(model_of(mixture, "odd", 4))


def unquantized(model: PackedModel, folder: Path, packed: Path) -> Path:
    """A folder for mlx-lm with the float32 weights that a packed model stands for."""
    shutil.copytree(packed, folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    tensors = {name: tensor.float() for name, tensor in model.plain.items()}
    tensors |= {f"{name}.weight": model.weight(name) for name in model.layers}
    save_tensors(tensors, folder)
    (folder / "config.json").write_bytes(model.artifact.files["config.json"])
    return folder


def mlx_logits(folder: Path) -> Any:
    """Logits (2, 20, vocabulary) that mlx-lm computes on the CPU, as a numpy array of float32."""
    core = pytest.importorskip("mlx.core")
    loading = pytest.importorskip("mlx_lm.utils")
    numpy = pytest.importorskip("numpy")
    core.set_default_device(core.cpu)
    model, _ = loading.load_model(folder)
    return numpy.array(model(core.array(IDS.numpy())).astype(core.float32))


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("kind", "bits"), GRIDS)
def test_mlx_computes_the_logits_of_the_decoded_weights(
    kind: str, bits: int, tied: bool, tmp_path: Path
) -> None:
    pytest.importorskip("mlx_lm")
    loaded = load(str(family_folder(tmp_path / "llama", "llama", tie_word_embeddings=tied)))
    model = model_of(loaded, kind, bits)
    packed = export(model, "mlx-fp32", tmp_path / "packed").folder
    wanted = mlx_logits(unquantized(model, tmp_path / "dense", packed))
    found = mlx_logits(packed)
    assert abs(wanted).max() > 0.1
    assert (found == wanted).all(), abs(found - wanted).max()
    half = mlx_logits(export(model, "mlx", tmp_path / "half").folder)
    assert 0 < abs(half - wanted).max() < 0.05 * abs(wanted).max()
