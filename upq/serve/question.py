"""What a program asks: the body of a chat completion, read and judged.

Fields that nobody knows are passed over, as other servers do. A field of OpenAI's that would change what the answer
means, and that is not served, is refused unless its value says that nothing is wanted.
"""

from __future__ import annotations

import json
import secrets
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from upq.decode import DECODING_RANGES, Decoding
from upq.errors import shown
from upq.serve.refusal import Refusal

#: The longest answer where nobody says how long it may be, tokens.
USUAL_TOKENS = 1024
MAX_STOPS = 16
#: Fields that are not served -> the values that ask for nothing. None and what is empty ask for nothing as well.
_UNSERVED: dict[str, tuple[Any, ...]] = {
    "tools": (),
    "functions": (),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "n": (1,),
    "logprobs": (False, 0),
    "top_logprobs": (0,),
    "logit_bias": (),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "web_search_options": (),
    "prediction": (),
}


def _between(setting: str) -> Any:
    low, high = DECODING_RANGES[setting]
    return Field(ge=low, le=high, allow_inf_nan=False)


class _Read(BaseModel):
    model_config: ClassVar[ConfigDict] = ConfigDict(strict=True, frozen=True, extra="ignore")


class _Part(_Read):
    type: Literal["text"]
    text: str


class _Message(_Read):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[_Part]

    @property
    def said(self) -> dict[str, str]:
        """The message as chat templates take it."""
        parts = self.content
        text = parts if isinstance(parts, str) else "".join(part.text for part in parts)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class _StreamOptions(_Read):
    include_usage: bool | None = False


class Question(_Read):
    """A chat completion that is asked for. max_tokens: -1 is as many as may be."""

    model: str
    messages: Annotated[list[_Message], Field(min_length=1)]
    stream: bool | None = False
    stream_options: _StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=-1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=-1)] | None = None
    temperature: Annotated[float, _between("temperature")] | None = None
    top_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    seed: int | None = None
    stop: str | Annotated[list[str], Field(max_length=MAX_STOPS)] | None = None

    @property
    def conversation(self) -> list[dict[str, str]]:
        """The messages as chat templates take them."""
        return [message.said for message in self.messages]

    @property
    def stops(self) -> list[str]:
        """Texts that end the answer, themselves not part of it."""
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return [stop for stop in stops if stop]

    @property
    def wants_usage(self) -> bool:
        """Whether a stream tells at its end how many tokens it took."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def decoding(self) -> Decoding:
        """How the answer is drawn. Without a temperature it is greedy, and without a seed each draw is another."""
        most = int(DECODING_RANGES["max_new_tokens"][1])
        named = self.max_completion_tokens
        wanted = named if named is not None else self.max_tokens
        tokens = USUAL_TOKENS if wanted is None else most if wanted < 0 else min(wanted, most)
        seeds = int(DECODING_RANGES["seed"][1]) + 1
        is_seeded = self.seed is not None and self.seed >= 0
        return Decoding(
            max_new_tokens=max(1, tokens),
            temperature=self.temperature or 0.0,
            top_p=1.0 if self.top_p is None else max(self.top_p, DECODING_RANGES["top_p"][0]),
            seed=(self.seed or 0) % seeds if is_seeded else secrets.randbelow(seeds),
        )


def read(body: bytes) -> Question:
    """Read the body of a request. Raises Refusal: 400, with a sentence that names the field."""
    try:
        values = json.loads(body)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise Refusal(400, "The body is no JSON object; expected a chat completion.")
    for name, neutral in _UNSERVED.items():
        if (value := values.get(name)) and value not in neutral:
            raise Refusal(
                400,
                f"{name} is {shown(value)}, which is not served; leave it out.",
                param=name,
                code="unsupported_parameter",
            )
    try:
        return Question.model_validate(values)
    except ValidationError as error:
        raise _refusal(error) from None


def _refusal(error: ValidationError) -> Refusal:
    """The first of the mistakes in a body."""
    first = error.errors()[0]
    where = first["loc"]
    name = ".".join(map(str, where[:1] if where[0] != "messages" else where[:3]))
    if where[0] == "messages" and len(where) > 2 and where[2] == "content":
        sentence = f"{name} is neither a text nor a list of text parts; images, audio and calls are not read."
    elif first["type"] == "missing":
        sentence = f"{name} is missing."
    else:
        sentence = f"{name} is {shown(first['input'])}: {first['msg'].lower()}."
    return Refusal(400, sentence, param=name, code="invalid_value")
