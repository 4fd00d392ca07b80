"""The losses of distillation and their gradients: generalized Jensen-Shannon divergence and next-token loss.

D(P || Q) = beta KL(P || M) + (1 - beta) KL(Q || M) with M = beta P + (1 - beta) Q, P the teacher and Q the student
(GKD, equation 1; UPQ section 3.3 writes lambda = 1 - beta). beta 0 and 1 are, as in GKD's reference code, the
exact limits KL(P || Q) and KL(Q || P) rather than the value of the formula, which vanishes there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from upq.models import CHUNK_ROWS

#: On a GPU, where every operation is a launch, the head maps as many rows at once as have this many logits: 256 MB in
#: float32, of which the divergence holds about eight at a time.
GPU_LOGITS = 2**26


def generalized_jsd(
    teacher_logits: torch.Tensor,
    student_logits: torch.Tensor,
    beta: float = 0.5,
    temperature: float = 1.0,
) -> torch.Tensor:
    """Divergence per row in nats: two (rows, vocabulary) logits -> (rows,). Differentiable by autograd."""
    log_p = F.log_softmax(teacher_logits.float() / temperature, -1)
    log_q = F.log_softmax(student_logits.float() / temperature, -1)
    if beta == 0:
        return (log_p.exp() * (log_p - log_q)).sum(-1)
    if beta == 1:
        return (log_q.exp() * (log_q - log_p)).sum(-1)
    log_beta, log_rest = torch.tensor([beta, 1 - beta], device=log_p.device).log()
    log_m = torch.logaddexp(log_p + log_beta, log_q + log_rest)
    return beta * (log_p.exp() * (log_p - log_m)).sum(-1) + (1 - beta) * (
        log_q.exp() * (log_q - log_m)
    ).sum(-1)


def jsd_and_gradient(
    teacher_logits: torch.Tensor, student_logits: torch.Tensor, beta: float, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(divergence per row (rows,), its gradient by the student's logits (rows, vocabulary)), both float32.

    With r = dD/dq the gradient is q (r - sum q r) / temperature; r is (1 - beta) log(q / m), -p / q, or log(q / p).
    Fewer passes over the vocabulary than autograd makes; tested against it.
    """
    log_p = F.log_softmax(teacher_logits.float() / temperature, -1)
    log_q = F.log_softmax(student_logits.float() / temperature, -1)
    p, q = log_p.exp(), log_q.exp()
    if beta == 0:
        loss = (p * log_p.sub_(log_q)).sum(-1)
        return loss, q.sub_(p).div_(temperature)
    if beta == 1:
        ratio = log_q.sub_(log_p)
        loss = (q * ratio).sum(-1)
    else:
        log_m = (p * beta).add_(q, alpha=1 - beta).log_()
        log_p.sub_(log_m)
        ratio = log_q.sub_(log_m).mul_(1 - beta)
        # 0 log 0 is 0: a probability that underflowed leaves -inf or nan behind, times 0.
        teacher_part = (p * log_p.nan_to_num_(0.0, neginf=0.0, posinf=0.0)).sum(-1)
        ratio.nan_to_num_(0.0, neginf=0.0, posinf=0.0)
        loss = beta * teacher_part + (q * ratio).sum(-1)
    mean_ratio = (q * ratio).sum(-1, keepdim=True)
    return loss, q.mul_(ratio.sub_(mean_ratio)).div_(temperature)


def chunk_rows(hidden: torch.Tensor, head: Any) -> int:
    """How many rows of hidden (rows, hidden) `head` should map to logits at once."""
    if not hidden.is_cuda:
        return CHUNK_ROWS
    vocabulary = head(hidden[:1]).shape[-1]
    return max(CHUNK_ROWS, GPU_LOGITS // vocabulary)


#: Rows of the batch and the student's logits for them -> (loss per row, its gradient by those logits).
Compare = Callable[[slice, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any, student_hidden: torch.Tensor, head: Any, compare: Compare
    ) -> torch.Tensor:
        gradient = torch.empty_like(student_hidden)
        total = torch.zeros((), dtype=torch.float64, device=student_hidden.device)
        step = chunk_rows(student_hidden, head)
        for start in range(0, len(student_hidden), step):
            rows = slice(start, start + step)
            with torch.enable_grad():
                hidden = student_hidden[rows].detach().requires_grad_()
                student_logits = head(hidden)
            with torch.no_grad():
                loss, logit_gradient = compare(rows, student_logits.detach())
            student_logits.backward(logit_gradient.to(student_logits.dtype))
            assert hidden.grad is not None
            gradient[rows] = hidden.grad
            total += loss.sum(dtype=torch.float64)
        context.save_for_backward(gradient)
        return total.float()

    @staticmethod
    def backward(context: Any, upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = context.saved_tensors
        return gradient * upstream.to(gradient.dtype), None, None


def head_divergence(
    student_hidden: torch.Tensor,
    teacher_logits: Callable[[slice], torch.Tensor],
    head: Any,
    beta: float,
    temperature: float,
) -> torch.Tensor:
    """Sum over rows of the divergence between a teacher's logits and those that `head` makes of states (rows, hidden).

    `head` has no trainable parameters; teacher_logits gives (some rows, vocabulary). The gradient is made in the
    forward pass, a few rows at a time (`chunk_rows`), so logits of the whole batch never exist.
    """

    def compare(rows: slice, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return jsd_and_gradient(teacher_logits(rows), logits, beta, temperature)

    return _HeadLoss.apply(student_hidden, head, compare)


def head_cross_entropy(
    student_hidden: torch.Tensor, next_ids: torch.Tensor, head: Any
) -> torch.Tensor:
    """Sum over rows of -log q(next id), in nats, for states (rows, hidden) and ids (rows,); as head_divergence."""

    def compare(rows: slice, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        log_q = F.log_softmax(logits.float(), -1)
        wanted = next_ids[rows].unsqueeze(-1)
        loss = -log_q.gather(-1, wanted).squeeze(-1)
        return loss, log_q.exp_().scatter_add_(
            -1, wanted, -torch.ones_like(wanted, dtype=log_q.dtype)
        )

    return _HeadLoss.apply(student_hidden, head, compare)
