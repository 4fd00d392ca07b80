"""Decoding for the chat: one answer, streamed piece by piece, that can be stopped between two tokens."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import DynamicCache

from upq.conversation import chat_ids
from upq.data import end_ids
from upq.errors import UserError

#: Pause between two pieces of a streamed answer, seconds.
PIECE_SECONDS = 0.05
#: A detokenizer shows half a character as this sign; it is held back until it is whole.
REPLACEMENT = "\ufffd"


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """temperature 0 is greedy; top_p 1 keeps every token."""

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low, high in (
            ("max_new_tokens", 1, 8192),
            ("temperature", 0, 5),
            ("top_p", 0.01, 1),
            ("seed", 0, 2**63 - 1),
        ):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not low <= value <= high:
                raise UserError("bad_decoding", f"{name} is {value!r}; expected {low} to {high}.")


@dataclass(frozen=True)
class Piece:
    """The answer so far. tokens_per_s counts decoding only, from the second token on; times in seconds."""

    text: str
    tokens: int
    first_token_s: float
    tokens_per_s: float
    done: bool
    finish: Literal["", "stop", "length", "cancelled"]


@torch.inference_mode()
def stream(
    model: Any,
    tokenizer: Any,
    messages: list[dict[str, str]],
    decoding: Decoding,
    should_stop: Callable[[], bool],
) -> Iterator[Piece]:
    """Answer a conversation; the last piece has done=True. Raises UserError: prompt_too_long, bad_chat_template."""
    prompt = chat_ids(tokenizer, messages)
    room = _room(model, len(prompt))
    ends = end_ids(model, tokenizer)
    generator = torch.Generator(model.device).manual_seed(decoding.seed)
    cache = DynamicCache(config=model.config)
    inputs = torch.tensor([prompt], device=model.device)
    answer: list[int] = []
    started = shown = time.monotonic()
    first = started
    finish = ""
    while not finish:
        logits = model(
            input_ids=inputs, past_key_values=cache, use_cache=True, logits_to_keep=1
        ).logits[0, -1]
        token = _pick(logits.float(), decoding, generator)
        now = time.monotonic()
        first = now if not answer else first
        answer.append(token)
        inputs = torch.tensor([[token]], device=model.device)
        finish = _finish(token, len(answer), ends, min(room, decoding.max_new_tokens), should_stop)
        if finish or now - shown >= PIECE_SECONDS:
            shown = now
            yield _piece(tokenizer, answer, started, first, now, finish)


def _room(model: Any, prompt_tokens: int) -> int:
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 2**31
    if prompt_tokens >= limit:
        raise UserError(
            "prompt_too_long",
            f"The conversation has {prompt_tokens} tokens; the model reads at most {limit}.",
            "Clear the chat or shorten the message.",
        )
    return limit - prompt_tokens


def _pick(logits: torch.Tensor, decoding: Decoding, generator: torch.Generator) -> int:
    if decoding.temperature == 0:
        return int(logits.argmax())
    probabilities = torch.softmax(logits / decoding.temperature, -1)
    ordered, tokens = probabilities.sort(descending=True)
    kept = ordered * (ordered.cumsum(-1) - ordered < decoding.top_p)
    return int(tokens[torch.multinomial(kept, 1, generator=generator)])


def _finish(
    token: int, count: int, ends: set[int], longest: int, should_stop: Callable[[], bool]
) -> Literal["", "stop", "length", "cancelled"]:
    if token in ends:
        return "stop"
    if count >= longest:
        return "length"
    return "cancelled" if should_stop() else ""


def _piece(
    tokenizer: Any, answer: list[int], started: float, first: float, now: float, finish: Any
) -> Piece:
    text = tokenizer.decode(answer, skip_special_tokens=True)
    text = text if finish else text.rstrip(REPLACEMENT)
    rate = (len(answer) - 1) / (now - first) if len(answer) > 1 and now > first else 0.0
    return Piece(text, len(answer), first - started, rate, bool(finish), finish)
