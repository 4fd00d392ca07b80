"""The simulated GPU refuses what CUDA refuses, replays what was captured, and its stand-ins compute what kernels do."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from tests.support.gpu_cases import IS_SIMULATED
from tests.support.simulated_gpu import gpu
from tests.support.training_cases import Case, check_same, interpretable
from tests.unit.kernels.test_triton_norm import passed
from upq.layers import grid_of
from upq.training.fused_norms import fused_norms
from upq.training.trainables import _norm_gains

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not IS_SIMULATED, reason="the simulated GPU is not in use"),
]
MEBIBYTE = 2**20
REFUSED: dict[str, Callable[[torch.Tensor], object]] = {
    "a CPU tensor among a GPU's": lambda here: here + torch.ones(3),
    "a product with a CPU tensor": lambda here: here[None] @ torch.ones(3, 1),
    "a generator of the CPU": lambda here: here.normal_(generator=torch.Generator()),
    "numpy": lambda here: here.numpy(),
}
WAITS: dict[str, Callable[[torch.Tensor], object]] = {
    "item": lambda here: here[0].item(),
    "nonzero": lambda here: here.nonzero(),
    "a copy to the host": lambda here: here.cpu(),
    "a copy from the host": lambda here: here.copy_(torch.ones(3)),
    "synchronize": lambda _: torch.cuda.synchronize(),
}


def captured(work: Callable[[], object]) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph


@pytest.mark.parametrize("work", REFUSED.values(), ids=REFUSED)
def test_what_cuda_refuses_is_refused(work: Callable[[torch.Tensor], object]) -> None:
    with pytest.raises((RuntimeError, TypeError)):
        work(torch.ones(3, device="cuda"))


@pytest.mark.parametrize("work", WAITS.values(), ids=WAITS)
def test_what_waits_for_the_device_is_refused_in_a_capture_and_nowhere_else(
    work: Callable[[torch.Tensor], object],
) -> None:
    here = torch.ones(3, device="cuda")
    work(here)
    with pytest.raises(RuntimeError, match="while a graph is captured"):
        captured(lambda: work(here))
    work(here)


def test_a_thread_may_wait_while_another_one_captures() -> None:
    here, found = torch.ones(3, device="cuda"), []

    def other_thread() -> None:
        thread = threading.Thread(target=lambda: found.append(here.sum().item()))
        thread.start()
        thread.join()

    captured(other_thread)
    assert found == [3.0]


def test_a_replay_reads_its_inputs_anew_and_writes_where_the_capture_wrote() -> None:
    inputs = torch.ones(3, device="cuda")
    outputs: list[torch.Tensor] = []
    graph = captured(lambda: outputs.append((2 * inputs).cumsum(0)))
    inputs.copy_(torch.tensor([1.0, 2.0, 3.0]))
    graph.replay()
    assert outputs[0].tolist() == [2.0, 6.0, 12.0]


def test_memory_is_counted_and_fresh_memory_is_no_number() -> None:
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    kept = torch.empty(MEBIBYTE // 4, device="cuda")
    assert kept.isnan().all()
    held = torch.cuda.memory_allocated() - before
    assert MEBIBYTE <= held < 1.1 * MEBIBYTE
    del kept
    assert torch.cuda.memory_allocated() - before < 0.1 * MEBIBYTE
    assert torch.cuda.max_memory_allocated() - before >= held


def test_random_numbers_follow_the_seed() -> None:
    drawn = []
    for seed in (0, 1, 0):
        torch.manual_seed(seed)
        drawn.append(torch.randn(9, device="cuda"))
    assert torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], drawn[1])


@pytest.mark.parametrize("kind", ["odd", "integer_zero", "signed"])
def test_stand_ins_of_fake_quantization_compute_what_the_kernels_do(kind: str) -> None:
    case = Case.random(grid_of(kind, 2), (5, 192, 64), torch.bfloat16, "cuda")
    case = interpretable(case)
    with gpu.interpreted():
        expected = case.results()
    check_same(case.results(), expected)


@pytest.mark.parametrize("trains", [False, True])
def test_stand_ins_of_norms_compute_what_the_kernels_do(trains: bool) -> None:
    norm = LlamaRMSNorm(96, 1e-5).requires_grad_(False)
    nn.init.uniform_(norm.weight, -2, 2)
    model = nn.Sequential(norm).to("cuda", torch.bfloat16)
    if trains:
        for gain in _norm_gains(model):
            nn.init.uniform_(gain.requires_grad_(), -0.5, 0.5)
    hidden, upstream = torch.randn(2, 7, 96, device="cuda").bfloat16()
    with fused_norms(model, torch.bfloat16):
        found = passed(model[0], hidden, upstream)
        with gpu.interpreted():
            expected = passed(model[0], hidden, upstream)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0.01, atol=0.01)
