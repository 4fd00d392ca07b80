"""How far two programs or files agree on what comes next after the same tokens, and what they are asked for that."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from upq.files import RESOURCES
from upq.models import chat_ids

#: Tokens of an answer at which distributions are compared.
ANSWER_TOKENS = 8


@dataclass(frozen=True)
class Agreement:
    """Two models at the same places. places: how many; kl: mean, in nats; same_top: share of equal likeliest tokens."""

    places: int
    kl: float
    same_top: float


def asked(tokenizer: Any, count: int) -> list[list[int]]:
    """The first held-out questions that ship with the program, each a conversation as token ids."""
    lines = (RESOURCES / "prompts_held_out.jsonl").read_text(encoding="utf-8").splitlines()
    prompts = [json.loads(line)["prompt"] for line in lines[:count]]
    return [chat_ids(tokenizer, [{"role": "user", "content": prompt}]) for prompt in prompts]


def divergence(wanted: torch.Tensor, found: torch.Tensor) -> float:
    """KL of two log-probabilities (vocabulary,), in nats."""
    return float(F.kl_div(found, wanted, log_target=True, reduction="sum"))


def agreement(wanted: Sequence[torch.Tensor], found: Sequence[torch.Tensor]) -> Agreement:
    """Log-probabilities (vocabulary,) of a model against those that were wanted, place by place."""
    pairs = list(zip(wanted, found, strict=True))
    same = sum(int(a.argmax() == b.argmax()) for a, b in pairs)
    kl = sum(divergence(a, b) for a, b in pairs)
    return Agreement(len(pairs), kl / len(pairs), same / len(pairs))
