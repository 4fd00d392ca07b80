"""The endpoint: its routes, and how an answer is computed while the server goes on listening.

All models compute in one thread, so answers come one after the other. Who leaves stops its answer at the next piece,
or loses its place in the row.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from upq.errors import UserError, shown
from upq.jobs import Models
from upq.serve.door import HEALTH
from upq.serve.models import Offered
from upq.serve.question import Question, read
from upq.serve.refusal import Refusal, refusal_of
from upq.serve.reply import END, Reply, event
from upq.serve.row import Row
from upq.serve.spoken import Said, spoken

T = TypeVar("T")
#: Bytes of a request: more than any model here can read.
MAX_BODY = 1 << 20
#: The status of an answer that nobody waits for any more.
GONE = 499


class Endpoint:
    """Answers for the offered models, by their ids."""

    def __init__(self, models: Models, offered: Mapping[str, Offered], row: Row) -> None:
        self._models = models
        self._offered = offered
        self._row = row
        self._thread = ThreadPoolExecutor(1, "answers")

    def application(self) -> Starlette:
        """The routes as an ASGI application."""
        routes = [
            Route(HEALTH, self._health),
            Route("/v1/models", self._list),
            Route("/v1/models/{id}", self._describe),
            Route("/v1/chat/completions", self._complete, methods=["POST"]),
        ]
        handlers: dict[Any, Any] = {
            Refusal: _refused,
            UserError: _refused,
            HTTPException: _no_route,
            Exception: _failed,
        }
        return Starlette(routes=routes, exception_handlers=handlers)

    async def _health(self, _: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def _list(self, _: Request) -> Response:
        models = [model.described for model in self._offered.values()]
        return JSONResponse({"object": "list", "data": models})

    async def _describe(self, request: Request) -> Response:
        return JSONResponse(self._named(request.path_params["id"]).described)

    def _named(self, name: str) -> Offered:
        if model := self._offered.get(name):
            return model
        there = ", ".join(self._offered)
        sentence = f"There is no model {shown(name)}; expected {there}."
        raise Refusal(404, sentence, param="model", code="model_not_found")

    async def _complete(self, request: Request) -> Response:
        question = read(await _body(request))
        model = self._named(question.model)
        reply = Reply(model.id)
        answer = self._answer(model, question)
        first = await _unless_gone(
            request, anext(answer)
        )  # what refuses the question has come by now
        if first is not None and not question.stream:
            whole = await _unless_gone(request, _whole(reply, first, answer))
            return Response(status_code=GONE) if whole is None else JSONResponse(whole)
        if first is None:
            return Response(status_code=GONE)
        stream = _stream(reply, question, first, answer)
        return StreamingResponse(
            stream, media_type="text/event-stream", headers={"Cache-Control": "no-cache"}
        )

    async def _answer(self, model: Offered, question: Question) -> AsyncGenerator[Said, None]:
        """The answer, when it is its turn, computed in the thread of the models."""
        loop = asyncio.get_running_loop()
        async with self._row.turn():
            said = self._said(model, question)
            try:
                while piece := await loop.run_in_executor(self._thread, next, said, None):
                    yield piece
            finally:
                self._thread.submit(said.close)

    def _said(self, model: Offered, question: Question) -> Generator[Said, None, None]:
        served = self._models.get(model.run_id, model.precision, model.source)
        pieces = served.answer(question.conversation, question.decoding)
        yield from spoken(pieces, question.stops)

    def close(self) -> None:
        """End the thread of the models, after the piece that it computes."""
        self._thread.shutdown()


async def _body(request: Request) -> bytes:
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MAX_BODY:
            sentence = f"The request is too large; expected at most {MAX_BODY:,} bytes."
            raise Refusal(413, sentence, headers={"Connection": "close"})
    return bytes(body)


async def _unless_gone(request: Request, work: Awaitable[T]) -> T | None:
    """What `work` gives; None where the client left before, and then it is cancelled."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        working.cancel()
        leaving.cancel()


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _whole(reply: Reply, first: Said, answer: AsyncGenerator[Said, None]) -> dict[str, Any]:
    last, text = first, first.text
    async for last in answer:
        text += last.text
    return reply.whole(text, last)


async def _stream(
    reply: Reply, question: Question, first: Said, answer: AsyncGenerator[Said, None]
) -> AsyncIterator[bytes]:
    async with aclosing(answer):
        yield event(reply.chunk({"role": "assistant", "content": first.text}))
        last = first
        try:
            async for last in answer:
                if last.text:
                    yield event(reply.chunk({"content": last.text}))
        except UserError as error:  # the status has been sent: the stream says what went wrong
            yield event(refusal_of(error).body)
            return
        yield event(reply.chunk({}, last.finish))
        if question.wants_usage:
            yield event(reply.used(last))
        yield END


async def _refused(_: Request, error: Exception) -> Response:
    refused = refusal_of(error) if isinstance(error, UserError) else error
    assert isinstance(refused, Refusal)
    return refused.response


async def _no_route(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 404
    sentence = f"{request.method} {shown(request.url.path)} is not served; expected POST /v1/chat/completions."
    return Refusal(status, sentence, code="not_found").response


async def _failed(_: Request, error: Exception) -> Response:
    """Of what nobody expected, the server's output has the details."""
    sentence = f"The answer stopped at an unexpected error ({type(error).__name__})."
    return Refusal(500, sentence, code="internal_error").response
