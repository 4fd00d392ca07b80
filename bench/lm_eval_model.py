"""A run's models for lm-eval: `lm_eval.simple_evaluate(model=UPQModel(store, 1, "INT2"), tasks=["mmlu"])`.

lm-eval is an optional extra (requirements-eval.txt); only this module imports it. Texts become tokens as lm-eval's own
class for Hugging Face models makes them, and the engine is the one that answers in the chat.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from lm_eval.api.instance import Instance  # pyright: ignore[reportMissingImports]
from lm_eval.api.model import TemplateLM  # pyright: ignore[reportMissingImports]
from lm_eval.utils import (  # pyright: ignore[reportMissingImports]
    get_rolling_token_windows,
    make_disjoint_window,
)

from upq.decode import Reader, answers, diverged, end_ids
from upq.jobs import Models
from upq.models import longest_sequence, render_chat
from upq.store import Store

#: Longest answer where a task does not say, tokens.
MAX_NEW_TOKENS = 256


class UPQModel(TemplateLM):
    """One precision of a run of a store (FP16, INT4 or INT2) as lm-eval asks for models."""

    def __init__(self, store: Store, run_id: int, precision: str) -> None:
        """Raises UserError as Models.get does."""
        super().__init__()
        served = Models(store).get(run_id, precision, store.run(run_id).model)
        self.engine, self.tokenizer = served.engine, served.tokenizer
        self.reader = Reader(self.engine)
        self.max_length = longest_sequence(self.engine.config)

    @property
    def eot_token_id(self) -> int:
        """What stands before a text that has no context."""
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """The same; the beginning-of-text token where there is one."""
        begin = self.tokenizer.bos_token_id
        return self.eot_token_id if begin is None else begin

    @property
    def tokenizer_name(self) -> str:
        """Part of the key under which lm-eval caches requests."""
        return self.tokenizer.name_or_path.replace("/", "__")

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        """Token ids; by default with the tokenizer's own special tokens, unless the text begins with one."""
        begin = self.tokenizer.bos_token
        if add_special_tokens is None:
            add_special_tokens = not (begin and string.startswith(begin))
        return self.tokenizer(string, add_special_tokens=add_special_tokens, verbose=False)[
            "input_ids"
        ]

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The text of a conversation. Raises UserError("bad_chat_template")."""
        return render_chat(self.tokenizer, chat_history, add_generation_prompt)

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        """(log-probability, whether greedy decoding writes it) of each continuation behind its context."""
        found: dict[int, tuple[float, bool]] = {}
        # Neighbours share long beginnings, which are then read once.
        for at in sorted(range(len(requests)), key=lambda at: requests[at][1] + requests[at][2]):
            _text, context, continuation = requests[at]
            ids = (context + continuation)[-(self.max_length + 1) :][:-1]
            logits = self.reader.logits(ids, wanted=len(continuation))
            targets = torch.tensor(continuation, device=logits.device).unsqueeze(1)
            likely = torch.log_softmax(logits, -1).gather(1, targets)
            if not likely.isfinite().all():
                raise diverged(self.reader.engine, ids)
            greedy = bool((logits.argmax(-1, keepdim=True) == targets).all())
            found[at] = likely.sum().item(), greedy
        return [found[at] for at in range(len(requests))]

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Log-probability of each text, in windows of the model's context."""
        return [sum(self._windows(request.args[0])) for request in requests]

    def _windows(self, text: str) -> Iterator[float]:
        windows = get_rolling_token_windows(
            self.tok_encode(text), self.prefix_token_id, self.max_length, context_len=1
        )
        for context, continuation in map(make_disjoint_window, windows):
            ((likely, _),) = self._loglikelihood_tokens([(None, context, continuation)])
            yield likely

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Answers, many side by side, each cut before the first of its stop strings."""
        found: dict[int, str] = {}
        ends = end_ids(self.engine, self.tokenizer)
        for longest, temperature in sorted({_decoding(one) for one in requests}):
            prompts = {
                at: self.tok_encode(one.args[0])[-(self.max_length - longest) :]
                for at, one in enumerate(requests)
                if _decoding(one) == (longest, temperature)
            }
            options = {"max_new_tokens": longest, "temperature": temperature}
            for at, answer in answers(self.engine, prompts, ends, check=lambda _: None, **options):
                text = self.tokenizer.decode(answer, skip_special_tokens=True)
                found[at] = _cut(text, requests[at].args[1].get("until"))
        return [found[at] for at in range(len(requests))]


def _decoding(request: Instance) -> tuple[int, float]:
    """(longest answer in tokens, temperature), greedy unless the task samples."""
    options = request.args[1]
    temperature = float(options.get("temperature", 0)) if options.get("do_sample") else 0.0
    return int(options.get("max_gen_toks", MAX_NEW_TOKENS)), temperature


def _cut(text: str, until: str | list[str] | None) -> str:
    for stop in [until] if isinstance(until, str) else until or []:
        if stop:
            text = text.split(stop)[0]
    return text
