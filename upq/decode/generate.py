"""Decoding: one answer streamed piece by piece for the chat, and many answers side by side for checks and data."""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import torch

from upq.decode.draw import penalised, pick, pick_rows
from upq.decode.engine import Engine, diverged
from upq.decode.fitting import fitted
from upq.decode.reader import Reader
from upq.errors import UserError, shown
from upq.models import longest_sequence

#: Pause between two pieces of a streamed answer, seconds.
PIECE_SECONDS = 0.05
#: A detokenizer shows half a character as this sign; it is held back until it is whole.
REPLACEMENT = "\ufffd"
#: Answers that are written side by side: on a CPU, and at most on a GPU, where a step of many costs little more than of
#: few, but whose caches take no more than this share of the memory that is free.
ROWS, GPU_ROWS, CACHE_SHARE = 16, 512, 0.25

#: The settings of Decoding -> the closed range of their values.
DECODING_RANGES: Mapping[str, tuple[float, float]] = {
    "max_new_tokens": (1, 8192),
    "temperature": (0, 5),
    "top_p": (0.01, 1),
    "seed": (0, 2**63 - 1),
    "repetition_penalty": (1, 2),
}


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How an answer is drawn: temperature 0 takes the likeliest token, top_p 1 lets every token be drawn, and a
    repetition_penalty above 1 makes tokens of the prompt and of the answer so far less likely (`draw.penalised`).
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        for setting in fields(self):
            value, (low, high) = getattr(self, setting.name), DECODING_RANGES[setting.name]
            kinds = (int,) if isinstance(setting.default, int) else (int, float)
            if type(value) not in kinds or not low <= value <= high:
                found = f"{setting.name} is {shown(value)}"
                raise UserError("bad_decoding", f"{found}; expected {low} to {high}.")


@dataclass(frozen=True)
class Piece:
    """The answer so far.

    first_token_s: from the request to the first token, seconds; tokens_per_s: decoding only, from the second on.
    left_out: turns at the beginning of the conversation that the model did not read; limit: what it reads at most,
    prompt and answer, tokens. ids: of the last piece the tokens that were written, the one that ended it among them.
    """

    text: str
    prompt_tokens: int
    tokens: int
    first_token_s: float
    tokens_per_s: float
    done: bool
    finish: Literal["", "stop", "length", "cancelled"]
    left_out: int = 0
    limit: int = 0
    ids: tuple[int, ...] = ()


@torch.inference_mode()
def stream(
    reader: Reader,
    tokenizer: Any,
    messages: list[dict[str, str]],
    decoding: Decoding,
    should_stop: Callable[[], bool],
) -> Iterator[Piece]:
    """Answer a conversation; the last piece has done=True. What is too long loses its first turns.

    reader: of the engine that answers; what it holds of the conversation is not read again, and behind the last piece
    it holds prompt and answer but for the last token. Raises UserError: prompt_too_long, bad_chat_template, diverged.
    """
    engine = reader.engine
    limit = longest_sequence(engine.config)
    prompt, left_out = fitted(tokenizer, messages, limit, decoding.max_new_tokens)
    longest = min(_room(engine, len(prompt)), decoding.max_new_tokens)
    ends = end_ids(engine, tokenizer)
    generator = torch.Generator(engine.device).manual_seed(decoding.seed)
    answer: list[int] = []
    seen = set(prompt)
    started = shown = first = time.monotonic()
    reader.reserve(len(prompt) + longest)
    finish = ""
    while not finish:
        logits = reader.step(answer[-1]) if answer else reader.logits(prompt)[0]
        logits = penalised(logits, seen, decoding.repetition_penalty)
        token = pick(logits, decoding.temperature, decoding.top_p, generator)
        if token is None:
            raise diverged(engine, prompt + answer)
        answer.append(token)
        seen.add(token)
        now = time.monotonic()
        first = now if len(answer) == 1 else first
        finish = _finish(answer, ends, longest) or ("cancelled" if should_stop() else "")
        if finish or now - shown >= PIECE_SECONDS:
            shown = now
            rate = (len(answer) - 1) / (now - first) if now > first else 0.0
            text = _text(tokenizer, answer, bool(finish))
            yield Piece(
                text=text,
                prompt_tokens=len(prompt),
                tokens=len(answer),
                first_token_s=first - started,
                tokens_per_s=rate,
                done=bool(finish),
                finish=finish,
                left_out=left_out,
                limit=limit,
                ids=tuple(answer) if finish else (),
            )


@dataclass
class _Open:
    """An answer that is being written in a row of a session."""

    index: int
    longest: int
    generator: torch.Generator
    ids: list[int] = field(default_factory=list)


@torch.inference_mode()
def answers(
    engine: Engine,
    prompts: Mapping[int, Sequence[int]],
    ends: set[int],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
    check: Callable[[int], None],
    rows: int = 0,
) -> Iterator[tuple[int, list[int]]]:
    """(index, answer with its end token) for each prompt of token ids, as soon as it is complete, in any order.

    Up to `rows` answers are written side by side (0: as many as suit the device); a complete one makes room for the
    next prompt. Each samples by itself, from (seed, index), so it does not depend on its neighbours; temperature 0 is
    greedy. check(tokens written so far) is called once a step and may raise. Raises UserError:
    prompt_too_long, diverged.
    """
    in_step = getattr(engine, "by_graphs", False) and len(prompts) > ROWS
    if not prompts:
        return
    rooms = {index: min(max_new_tokens, _room(engine, len(ids))) for index, ids in prompts.items()}
    length = max(len(prompts[index]) + room for index, room in rooms.items())
    rows = rows or (_gpu_rows(engine, length) if in_step else ROWS)
    # Like lengths are neighbours, so that a step reads little beside what it needs; the longest come first.
    waiting = deque(sorted(prompts, key=lambda index: -len(prompts[index])))
    free = list(range(min(rows, len(prompts))))
    session = engine.session(len(free), length)
    if in_step:
        queue = deque((index, prompts[index], rooms[index]) for index in waiting)
        yield from _answers_in_step(
            engine, session, queue, ends, len(free), temperature, seed, check
        )
        return
    working: dict[int, _Open] = {}
    written = 0
    while waiting or working:
        check(written)
        if waiting and free:
            row, index = free.pop(), waiting.popleft()
            generator = torch.Generator(engine.device).manual_seed(_seed(seed, index))
            working[row] = _Open(index, rooms[index], generator)
            advanced = {row: session.prefill(row, prompts[index])}
        else:
            busy = sorted(working)
            last = [working[row].ids[-1] for row in busy]
            advanced = dict(zip(busy, session.step(busy, last), strict=True))
        written += len(advanced)
        for row, logits in advanced.items():
            answer = working[row]
            token = pick(logits, temperature, 1.0, answer.generator)
            if token is None:
                raise diverged(engine, [*prompts[answer.index], *answer.ids])
            answer.ids.append(token)
            if _finish(answer.ids, ends, answer.longest):
                free.append(row)
                del working[row]
                yield answer.index, answer.ids


def _gpu_rows(engine: Engine, length: int) -> int:
    """How many answers of `length` tokens, prompts included, a GPU has room for."""
    config = engine.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    row_bytes = 2 * 2 * config.num_hidden_layers * heads * size * length
    free, _ = torch.cuda.mem_get_info(engine.device)
    return max(ROWS, min(GPU_ROWS, int(CACHE_SHARE * free) // row_bytes))


class _Row:
    """A row of a GPU's session: its prompt, which it reads one token a step, then its answer. Without a prompt it is
    idle and rewrites its first place.
    """

    def __init__(self, index: int, prompt: Sequence[int], longest: int, seed: int) -> None:
        self.index, self.prompt, self.longest = index, prompt, longest
        self.source = random.Random(f"{seed}-{index}")
        self.read = 0
        self.ids: list[int] = []

    @property
    def next_token(self) -> int:
        """What the row reads in the next step."""
        return self.ids[-1] if self.ids else self.prompt[self.read]

    @property
    def point(self) -> float:
        """A random number for each token of the answer, in its order; any other where none is drawn."""
        return self.source.random() if self.read + 1 >= len(self.prompt) else 0.5

    def take(self, token: int) -> bool:
        """Note that the row has made a step, which gave `token`; returns whether that is a token of the answer."""
        self.read += 1
        if self.read < len(self.prompt):
            return False
        self.ids.append(token)
        return True


def _answers_in_step(
    engine: Engine,
    session: Any,
    queue: deque[tuple[int, Sequence[int], int]],
    ends: set[int],
    count: int,
    temperature: float,
    seed: int,
    check: Callable[[int], None],
) -> Iterator[tuple[int, list[int]]]:
    """`answers` on a GPU: every row makes every step, one captured graph, whether it reads or writes, and all tokens
    are drawn at once, so that a step waits for the GPU a single time. queue: (index, prompt, room for its answer).
    """
    working = [_Row(*queue.popleft(), seed) for _ in range(count)]
    idle = [False] * count
    session.prefill(0, working[0].prompt[:1])  # the first sequence shows what the cache has to hold
    session.rewind(0, 0)
    written, every = 0, list(range(count))
    while not all(idle):
        check(written)
        points = torch.tensor([answer.point for answer in working], dtype=torch.float64)
        logits = session.step(every, [answer.next_token for answer in working])
        drawn = pick_rows(logits, temperature, points).tolist()
        for row, token in enumerate(drawn):
            answer = working[row]
            if idle[row]:
                session.rewind(row, 0)
            elif token < 0:
                raise diverged(engine, [*answer.prompt, *answer.ids])
            elif answer.take(token):
                written += 1
                if _finish(answer.ids, ends, answer.longest):
                    yield answer.index, answer.ids
                    session.rewind(row, 0)
                    idle[row] = not queue
                    working[row] = _Row(*(queue.popleft() if queue else (0, [token], 1)), seed)


def _seed(seed: int, index: int) -> int:
    return random.Random(f"{seed}-{index}").getrandbits(63)


def end_ids(engine: Engine, tokenizer: Any) -> set[int]:
    """Token ids that end an answer."""
    configured = engine.generation_config.eos_token_id
    listed = configured if isinstance(configured, list) else [configured]
    return {token for token in [*listed, tokenizer.eos_token_id] if token is not None}


def _room(engine: Engine, prompt_tokens: int) -> int:
    limit = longest_sequence(engine.config)
    if prompt_tokens >= limit:
        raise UserError(
            "prompt_too_long",
            f"The conversation has {prompt_tokens:,} tokens; the model reads at most {limit:,}.",
            "Begin a new chat or shorten the message.",
        )
    return limit - prompt_tokens


def _finish(answer: list[int], ends: set[int], longest: int) -> Literal["", "stop", "length"]:
    if answer[-1] in ends:
        return "stop"
    return "length" if len(answer) >= longest else ""


def _text(tokenizer: Any, answer: list[int], whole: bool) -> str:
    text = tokenizer.decode(answer, skip_special_tokens=True)
    return text if whole else text.rstrip(REPLACEMENT)
