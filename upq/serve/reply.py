"""Answers in the shapes of OpenAI's chat completions: whole, and as chunks of a stream of server-sent events."""

from __future__ import annotations

import json
import secrets
import time
from dataclasses import dataclass, field
from typing import Any

import upq
from upq.serve.spoken import Said

#: The last line of a stream.
END = b"data: [DONE]\n\n"


@dataclass(frozen=True)
class Reply:
    """One answer. model: the id that was asked."""

    model: str
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, text: str, last: Said) -> dict[str, Any]:
        """The answer in one piece. last: how it ended."""
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": last.finish}
        return self._shape("chat.completion", [choice]) | {"usage": usage(last)}

    def chunk(self, delta: dict[str, str], finish: str | None = None) -> dict[str, Any]:
        """A part of a stream."""
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return self._shape("chat.completion.chunk", [choice])

    def used(self, last: Said) -> dict[str, Any]:
        """The part of a stream that tells how many tokens it took."""
        return self._shape("chat.completion.chunk", []) | {"usage": usage(last)}

    def _shape(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": f"upq-{upq.__version__}",
            "choices": choices,
        }


def usage(last: Said) -> dict[str, int]:
    """The tokens that were read and written."""
    return {
        "prompt_tokens": last.prompt_tokens,
        "completion_tokens": last.tokens,
        "total_tokens": last.prompt_tokens + last.tokens,
    }


def event(value: dict[str, Any]) -> bytes:
    """A value as a server-sent event."""
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n".encode()
