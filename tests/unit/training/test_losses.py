"""The generalized JSD: what it is at its limits, its bounds, its gradient, and the chunked head."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from upq.models import CHUNK_ROWS
from upq.training.losses import chunk_rows, generalized_jsd, head_divergence, jsd_and_gradient

BETAS = [0.0, 0.1, 0.5, 0.9, 1.0]
betas = pytest.mark.parametrize("beta", BETAS)


def logits(rows: int, words: int, seed: int, size: float = 3.0) -> torch.Tensor:
    return size * torch.randn(rows, words, generator=torch.Generator().manual_seed(seed))


@betas
def test_equal_distributions_have_no_divergence_and_no_gradient(beta: float) -> None:
    same = logits(4, 50, 0)
    loss, gradient = jsd_and_gradient(same, same + 7.0, beta, 1.0)
    assert loss.abs().max() < 1e-5
    assert gradient.abs().max() < 1e-6
    assert generalized_jsd(same, same, beta).abs().max() < 1e-6


@given(
    beta=st.floats(0.01, 0.99),
    temperature=st.floats(0.2, 5.0),
    size=st.floats(0, 30),
    seed=st.integers(0, 99),
)
def test_divergence_lies_between_zero_and_the_binary_entropy_of_beta(
    beta: float, temperature: float, size: float, seed: int
) -> None:
    pair = logits(3, 20, seed, size), logits(3, 20, seed + 100, size)
    entropy = -beta * math.log(beta) - (1 - beta) * math.log(1 - beta)
    found = generalized_jsd(*pair, beta, temperature)
    assert (found >= -1e-6).all()
    assert (found <= entropy + 1e-5).all()


def test_at_one_half_the_divergence_is_symmetric() -> None:
    one, other = logits(4, 30, 0), logits(4, 30, 1)
    torch.testing.assert_close(generalized_jsd(one, other), generalized_jsd(other, one))


def test_swapping_the_models_is_the_same_as_swapping_beta() -> None:
    one, other = logits(4, 30, 0), logits(4, 30, 1)
    torch.testing.assert_close(generalized_jsd(one, other, 0.3), generalized_jsd(other, one, 0.7))


def test_beta_0_and_1_are_the_two_kl_divergences_of_torch() -> None:
    teacher, student = logits(4, 30, 0), logits(4, 30, 1)
    log_p, log_q = F.log_softmax(teacher, -1), F.log_softmax(student, -1)
    forward = F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)
    backward = F.kl_div(log_p, log_q, reduction="none", log_target=True).sum(-1)
    for beta, expected in ((0.0, forward), (1.0, backward)):
        torch.testing.assert_close(generalized_jsd(teacher, student, beta), expected)
        torch.testing.assert_close(jsd_and_gradient(teacher, student, beta, 1.0)[0], expected)


def test_divided_by_beta_the_divergence_tends_to_the_forward_kl() -> None:
    teacher, student = logits(4, 10, 0, 1.0).double(), logits(4, 10, 1, 1.0).double()
    log_p, log_q = F.log_softmax(teacher, -1), F.log_softmax(student, -1)
    kl = (log_p.exp() * (log_p - log_q)).sum(-1)
    small = generalized_jsd(teacher, student, 1e-3).double() / 1e-3
    torch.testing.assert_close(small, kl, atol=2e-2, rtol=2e-2)
    torch.testing.assert_close(
        generalized_jsd(teacher, student, 1 - 1e-3).double() / 1e-3,
        (log_q.exp() * (log_q - log_p)).sum(-1),
        atol=2e-2,
        rtol=2e-2,
    )


@betas
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_the_written_gradient_equals_autograd(beta: float, temperature: float) -> None:
    teacher, student = logits(5, 40, 0), logits(5, 40, 1).requires_grad_()
    expected = generalized_jsd(teacher, student, beta, temperature)
    expected.sum().backward()
    loss, gradient = jsd_and_gradient(teacher, student.detach(), beta, temperature)
    torch.testing.assert_close(loss, expected.detach(), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(gradient, student.grad, atol=1e-6, rtol=1e-5)


def double_jsd(teacher: torch.Tensor, student: torch.Tensor, beta: float) -> torch.Tensor:
    """The definition in float64, one row at a time."""
    p, q = F.softmax(teacher.double(), -1), F.softmax(student.double(), -1)
    if beta == 0:
        return (p * (p / q).log()).sum()
    if beta == 1:
        return (q * (q / p).log()).sum()
    m = beta * p + (1 - beta) * q
    return beta * (p * (p / m).log()).sum() + (1 - beta) * (q * (q / m).log()).sum()


@betas
def test_loss_and_gradient_match_the_definition_and_its_finite_differences(beta: float) -> None:
    teacher, student = logits(1, 12, 3), logits(1, 12, 4).double()
    loss, gradient = jsd_and_gradient(teacher, student.float(), beta, 1.0)
    assert loss.item() == pytest.approx(double_jsd(teacher, student, beta).item(), abs=1e-5)
    for word in range(12):
        nudge = torch.zeros_like(student)
        nudge[0, word] = 1e-5
        up, down = (double_jsd(teacher, student + sign * nudge, beta) for sign in (1, -1))
        assert gradient[0, word].item() == pytest.approx(((up - down) / 2e-5).item(), abs=1e-5)


@betas
def test_extreme_logits_stay_finite(beta: float) -> None:
    extreme = torch.tensor([[1e4, -1e4, 0.0, 0.0], [-1e4, -1e4, -1e4, 1e4], [0.0, 0.0, 0.0, 0.0]])
    for teacher in (extreme, extreme.flip(0), extreme.flip(1)):
        student = extreme.clone().requires_grad_()
        loss, gradient = jsd_and_gradient(teacher, extreme, beta, 1.0)
        assert loss.isfinite().all()
        assert gradient.isfinite().all()
        assert (loss >= -1e-6).all()
        generalized_jsd(teacher, student, beta).sum().backward()
        assert student.grad is not None
        assert student.grad.isfinite().all()


@pytest.mark.parametrize("rows", [0, 1, CHUNK_ROWS, 2 * CHUNK_ROWS + 5])
@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_the_chunked_head_gives_the_loss_and_gradient_of_the_whole_batch(
    rows: int, beta: float
) -> None:
    head = torch.nn.Linear(8, 40, bias=False).requires_grad_(False)
    student, teacher = logits(rows, 8, 0, 1.0).requires_grad_(), logits(rows, 8, 1, 1.0)

    def given(rows: slice) -> torch.Tensor:
        return head(teacher[rows])

    (2 * head_divergence(student, given, head, beta, 1.3)).backward()
    whole = student.detach().clone().requires_grad_()
    loss = generalized_jsd(head(teacher), head(whole), beta, 1.3).sum()
    (2 * loss).backward()
    torch.testing.assert_close(head_divergence(whole.detach(), given, head, beta, 1.3), loss)
    torch.testing.assert_close(student.grad, whole.grad, atol=1e-6, rtol=1e-5)
    assert head.weight.grad is None


def test_a_gpu_maps_as_many_rows_to_logits_as_memory_allows() -> None:
    class OnGpu(torch.Tensor):
        is_cuda = True  # pyright: ignore

    hidden = torch.empty(4, 8, device="meta")
    for vocabulary, rows in ((512, 131_072), (49_152, 1365), (10**6, CHUNK_ROWS)):
        head = torch.nn.Linear(8, vocabulary, device="meta")
        assert chunk_rows(hidden, head) == CHUNK_ROWS
        assert chunk_rows(hidden.as_subclass(OnGpu), head) == rows
