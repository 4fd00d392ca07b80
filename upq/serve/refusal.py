"""What the endpoint refuses, in the shape of OpenAI's errors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse

from upq.errors import UserError
from upq.files import clean_text

#: Errors of an answer that whoever asked can mend: our code -> the code of OpenAI for the same, or our own.
_OF_THE_REQUEST = {
    "prompt_too_long": "context_length_exceeded",
    "bad_chat_template": "bad_chat_template",
    "bad_decoding": "bad_decoding",
}


class Refusal(Exception):
    """An HTTP status and one sentence for the program that asked.

    param: the field that is wrong. code: a name that programs compare.
    """

    def __init__(
        self,
        status: int,
        sentence: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(sentence)
        self.status = status
        self.headers = headers
        kind = "invalid_request_error" if status < 500 else "server_error"
        self.body: dict[str, Any] = {
            "error": {"message": clean_text(sentence), "type": kind, "param": param, "code": code}
        }

    @property
    def response(self) -> JSONResponse:
        """The refusal as an answer over HTTP."""
        return JSONResponse(self.body, self.status, self.headers)


def refusal_of(error: UserError) -> Refusal:
    """An error of an answer: the request's own fault where it can be mended there, else the server's."""
    sentence = f"{error.message} {error.hint}".strip()
    if error.code in _OF_THE_REQUEST:
        return Refusal(400, sentence, param="messages", code=_OF_THE_REQUEST[error.code])
    return Refusal(500, sentence, code=error.code)
