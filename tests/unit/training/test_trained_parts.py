"""What block-wise training moves: each learning rate its own part, and nothing else by a single bit."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.helpers import RecordingContext, examples
from upq.config import BlockwiseConfig, Int2Config
from upq.data import collate
from upq.layers import INT2, Form, Forms, grid_of
from upq.models import LoadedModel, decoder_blocks
from upq.models.structure import block_linears
from upq.training import BlockResult, Reconstruction, reconstruct

NOTHING: dict[str, Any] = {"weight_lr": 0.0, "scale_lr": 0.0}
EFFICIENTQAT: dict[str, Any] = {"group_size": 16, "grid": "integer_zero", "scale_init": "absmax"}
UNISVQ: dict[str, Any] = {"group_size": 0, "rotation": "both", "rounding": "ldlq"}
LATTICE: dict[str, Any] = {**UNISVQ, "codebook": "lattice"}


def reconstructed(
    model: Any, folder: Path, settings: dict[str, Any], **rates: Any
) -> tuple[BlockResult, RecordingContext]:
    blockwise = BlockwiseConfig(tokens=1, **{"epochs": 3, **NOTHING, **rates})
    config = Int2Config(**settings, blockwise=blockwise)
    prefix, blocks = decoder_blocks(model)
    start = {
        f"{prefix}.{index}.{name}": linear.weight.detach()
        for index, block in enumerate(blocks)
        for name, linear in block_linears(block).items()
    }
    grid = grid_of(config.grid, 2)
    task = Reconstruction(model, "int2", Forms(Form(grid, config.group_size)), config, start)
    made, context = examples(8), RecordingContext(folder)
    data = [collate(made[:4]), collate(made[4:])]
    return reconstruct(task, data, context), context


def parts(result: BlockResult) -> dict[str, dict[str, torch.Tensor]]:
    """part -> layer -> tensor: weight, scale, zero, and what surrounds the matrix."""
    found: dict[str, dict[str, torch.Tensor]] = {}
    for name, latent in result.layers.items():
        for part, tensor in latent.tensors().items():
            found.setdefault(part, {})[name] = tensor
    return found


@pytest.mark.parametrize(
    ("settings", "rates", "moved"),
    [
        (EFFICIENTQAT, {"weight_lr": 0.05}, {"weight"}),
        (EFFICIENTQAT, {"scale_lr": 0.01}, {"scale"}),
        (EFFICIENTQAT, {"weight_lr": 0.05, "zero_lr": 0.05}, {"weight", "zero"}),
        (UNISVQ, {"vector_lr": 0.01}, {"scale_in", "scale_out"}),
        (LATTICE, {"vector_lr": 0.01}, {"scale_in", "scale_out"}),
        (LATTICE, {"lattice_lr": 0.01}, {"affine", "shift"}),
    ],
    ids=["weights", "scales", "weights and zeros", "vectors", "vectors, lattice", "lattice"],
)
def test_a_learning_rate_moves_its_own_part_in_every_layer_and_no_other(
    tiny: LoadedModel,
    tmp_path: Path,
    settings: dict[str, Any],
    rates: dict[str, float],
    moved: set[str],
) -> None:
    """The first block: later ones start elsewhere, as they read what earlier ones gave. Zeros are pulled by clipped
    weights alone, and there are none until weights move.
    """
    still, _ = reconstructed(tiny.model, tmp_path, settings, epochs=0)
    trained, context = reconstructed(tiny.model, tmp_path, settings, **rates)
    assert not trained.plain, "norms have no learning rate"
    before, after = parts(still), parts(trained)
    assert before.keys() == after.keys()
    for part, tensors in before.items():
        for name, tensor in tensors.items():
            if ".0." in name:
                is_same = torch.equal(tensor, after[part][name])
                assert is_same == (part not in moved), f"{part} of {name}"
    errors = [context.curve(f"int2_block_{when}")[0] for when in ("before", "after")]
    assert errors[1] < errors[0]


@pytest.mark.parametrize("settings", [UNISVQ, LATTICE], ids=["scalar", "lattice"])
def test_tuning_what_surrounds_a_matrix_leaves_every_code_as_it_was(
    tiny: LoadedModel, tmp_path: Path, settings: dict[str, Any]
) -> None:
    still, _ = reconstructed(tiny.model, tmp_path, settings, epochs=0, inputs="fp16")
    rates = {"vector_lr": 0.01, "lattice_lr": 0.01, "inputs": "fp16"}
    trained, _ = reconstructed(tiny.model, tmp_path, settings, **rates)
    for name, latent in still.layers.items():
        assert torch.equal(latent.pack(INT2).codes, trained.layers[name].pack(INT2).codes)
        assert torch.equal(latent.pack(INT2).scale, trained.layers[name].pack(INT2).scale)


def test_norms_are_trained_where_they_have_a_rate(tiny: LoadedModel, tmp_path: Path) -> None:
    still, _ = reconstructed(tiny.model, tmp_path, EFFICIENTQAT, epochs=0)
    trained, _ = reconstructed(tiny.model, tmp_path, EFFICIENTQAT, norm_lr=0.02)
    names = {name for name, _ in tiny.model.named_parameters() if "layernorm" in name}
    assert trained.plain.keys() == names
    for name, weight in trained.plain.items():
        original = tiny.model.get_parameter(name)
        assert not torch.equal(weight, original), "moved"
        assert (weight / original).log().abs().max() < 0.3, "by a few steps of a relative rate"
    first = {name: layer for name, layer in still.layers.items() if ".0." in name}
    for name, latent in first.items():
        pairs = zip(latent.tensors().values(), trained.layers[name].tensors().values(), strict=True)
        assert all(torch.equal(*pair) for pair in pairs), "no layer moved"


def test_blocks_that_read_fp16_do_not_depend_on_the_blocks_before(
    tiny: LoadedModel, tmp_path: Path
) -> None:
    """With FP16 inputs the second block is the same whatever the first one became."""
    seconds = []
    for rate in (0.0, 0.05):
        for inputs in ("fp16", "quantized"):
            settings = {"group_size": 16}
            result, _ = reconstructed(
                tiny.model, tmp_path, settings, weight_lr=rate, epochs=1, inputs=inputs
            )
            scales = parts(result)["scale"]
            seconds.append(scales["model.layers.1.mlp.down_proj"])
    assert torch.equal(seconds[0], seconds[2]), "FP16's outputs"
    assert not torch.equal(seconds[1], seconds[3]), "the quantized blocks' outputs"
