"""What only an NVIDIA GPU can show; run by `make gpu-check`."""

from pathlib import Path

import pytest
import torch

from tests.support.helpers import RecordingContext, tiny_config
from upq.jobs.worker_context import gpu_peak_bytes
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
