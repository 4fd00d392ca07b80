"""llama.cpp itself, for comparing files with each other and with our engines.

The optional extra in requirements-export.txt; only this module imports it.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

#: What a token has that llama.cpp does not list: nothing, for all purposes.
UNLISTED = -math.inf


def library() -> ctypes.CDLL:
    """The compiled llama.cpp, whose C functions can be called."""
    return ctypes.CDLL(_module().xllamacpp.__file__)


def _module() -> Any:
    import xllamacpp  # noqa: PLC0415  # pyright: ignore[reportMissingImports] - most people lack it

    return xllamacpp


class LlamaCpp:
    """A GGUF loaded by llama.cpp on the CPU. threads: how many it computes with; context: tokens it makes room for."""

    def __init__(self, path: Path, threads: int = 1, context: int = 512) -> None:
        xllamacpp = _module()
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx, params.n_parallel, params.n_gpu_layers = context, 1, 0
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        params.warmup = params.endpoint_metrics = False
        params.verbosity = -1
        self._server: Any = xllamacpp.Server(params)

    def chat(self, message: str, tokens: int) -> str:
        """The most likely answer to a message, cut after so many tokens."""
        messages = [{"role": "user", "content": message}]
        request = {"messages": messages, "max_tokens": tokens, "temperature": 0.0}
        return self._answer(self._server.handle_chat_completions(request))["message"]["content"]

    def log_probabilities(self, prompt: str | Sequence[int], vocabulary: int) -> torch.Tensor:
        """(vocabulary,) float32 of the token after a prompt, a text or token ids."""
        request = {
            "prompt": prompt if isinstance(prompt, str) else list(prompt),
            "max_tokens": 1,
            "temperature": 0.0,
            "n_probs": vocabulary,
            "logprobs": vocabulary,
            # A token that ends the answer, or half a character, would be kept back with its numbers. The numbers are
            # of before this bias.
            "logit_bias": [["a", 1000.0]],
            "cache_prompt": False,  # the same prompt gives the same numbers
        }
        [place] = self._answer(self._server.handle_completions(request))["logprobs"]["content"]
        found = torch.full((vocabulary,), UNLISTED)
        for one in place["top_logprobs"]:
            found[one["id"]] = one["logprob"]
        return found

    def answer_places(self, prompt: Sequence[int], tokens: int) -> list[list[int]]:
        """The prompt, and the prompt with every beginning of the most likely answer, without its last token."""
        request = {"prompt": list(prompt), "max_tokens": tokens, "temperature": 0.0, "logprobs": 1}
        listed = self._answer(self._server.handle_completions(request))["logprobs"]
        answer = [one["id"] for one in listed["content"]] if listed else []
        return [[*prompt, *answer[:length]] for length in range(max(1, len(answer)))]

    def tokens_per_s(self, prompt: Sequence[int], tokens: int = 32) -> float:
        """Tokens of an answer written in a second, by llama.cpp's own clock."""
        request = {"prompt": list(prompt), "max_tokens": tokens, "ignore_eos": True}
        return self._server.handle_completions(request)["timings"]["predicted_per_second"]

    @staticmethod
    def _answer(reply: Any) -> dict[str, Any]:
        if "choices" not in reply:
            raise RuntimeError(f"llama.cpp refused a request: {reply}")
        return reply["choices"][0]
