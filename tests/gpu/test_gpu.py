"""What only an NVIDIA GPU can show; run by `make gpu-check`."""

import copy
from pathlib import Path

import pytest
import torch

from tests.support.helpers import RecordingContext, tiny_config
from upq.jobs.worker_context import gpu_peak_bytes
from upq.layers import FakeQuantLinear, FixedCodesLinear, Latent, grid_of
from upq.quantize.pipeline import run_quantization

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no NVIDIA GPU here"),
]


def test_a_whole_run_on_the_gpu_leaves_two_measured_artifacts(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    context = RecordingContext(tmp_path)
    run_quantization(tiny_config(tiny_model_dir, device="cuda"), context)
    assert [row["label"] for row in context.rows][:3] == ["FP16", "INT4", "INT2"]
    assert all(row["kl"] >= 0 for row in context.rows)
    assert (gpu_peak_bytes() or 0) > 0


@pytest.mark.parametrize("kind", ["odd", "integer_zero", "signed"])
@pytest.mark.parametrize("bits", [2, 4])
def test_codes_that_are_packed_on_the_gpu_are_those_of_the_cpu(bits: int, kind: str) -> None:
    grid, generator = grid_of(kind, bits), torch.Generator().manual_seed(0)
    weight = torch.randn(96, 512, generator=generator)
    here = FakeQuantLinear(Latent(weight, *grid.fit(weight, 64)), None, grid)
    there = copy.deepcopy(here).to("cuda")
    for layer, twin in ((here, there), (FixedCodesLinear(here), FixedCodesLinear(there))):
        expected, found = layer.pack(), twin.pack()
        assert found.codes.device == torch.device("cpu")
        assert torch.equal(found.codes, expected.codes)
        assert torch.equal(found.scale, expected.scale)
    latent = here.latent()
    assert torch.equal(latent.to("cuda").pack(grid).to("cpu").codes, latent.pack(grid).codes)
