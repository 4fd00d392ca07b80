"""An app that is served from the tests' own process, for tests that send it what nobody should."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import gradio as gr
import httpx
from gradio.state_holder import SessionState

from tests.support.conversations import content
from upq.jobs import Models, Served
from upq.store import Exchange, Store

#: Seconds after which a request hangs, on a machine that is busy.
HANG_S = 120
#: Where the app writes what it offers for download, in the folder of temporary files.
DOWNLOADS = "downloads"


class TinyModels(Models):
    """Models in which a tiny one stands for the bundled one."""

    def __init__(self, store: Store, folder: Path) -> None:
        super().__init__(store)
        self.folder = folder

    def get(self, run_id: int | None, precision: str, source: str) -> Served:
        return super().get(run_id, precision, str(self.folder) if source == "bundled" else source)


@dataclass(frozen=True)
class Answer:
    """What came of a call: its results in their order, or the sentence that refused it."""

    results: list[Any]
    refusal: str | None


@dataclass(frozen=True)
class OpenApp:
    """A served page: a client of its address, its store with one finished run, the folder of all temporary files."""

    page: gr.Blocks
    client: httpx.Client
    store: Store
    run_id: int
    scratch: Path

    def leftovers(self) -> list[Path]:
        """Temporary files that are no downloads."""
        files = [path for path in self.scratch.rglob("*") if path.is_file()]
        return [path for path in files if not path.is_relative_to(self.scratch / DOWNLOADS)]

    def kept(self, *said: Exchange) -> str:
        """Keep a conversation with the models of the run; return the address that opens it."""
        place = self.store.conversations.save(content(*said, run_id=self.run_id))
        return f"{self.client.base_url}?tab=chat&conversation={place.id}"

    @cached_property
    def session(self) -> SessionState:
        """One session for all calls: to make one takes longer than a call."""
        return SessionState(self.page)

    def post(self, route: str, values: Any) -> httpx.Response:
        """Send any JSON, also NaN, Infinity and halves of characters."""
        headers = {"Content-Type": "application/json"}
        return self.client.post(f"gradio_api/{route}", content=json.dumps(values), headers=headers)

    def ask(self, name: str, values: list[Any]) -> Answer:
        """Call an endpoint as Gradio's queue does, but without the queue. Raises all that is no gr.Error."""
        (function,) = [one for one in self.page.fns.values() if one.api_name == name]
        results: list[Any] = []

        async def run() -> None:
            iterator, goes_on = None, True
            while goes_on:
                found = await self.page.process_api(
                    function, list(values), self.session, iterator=iterator
                )
                results.extend(value for value in found["data"] if value is not None)
                iterator, goes_on = found["iterator"], found["is_generating"]

        try:
            asyncio.run(asyncio.wait_for(run(), HANG_S))
        except gr.Error as error:
            return Answer(results, error.message)
        return Answer(results, None)

    def call(self, name: str, values: Any, by_name: bool = False) -> Answer:
        """Call an endpoint, with a list of its arguments or by their names, and wait until it is over."""
        answer = self.post(f"call/v2/{name}" if by_name else f"call/{name}", values)
        if answer.status_code != httpx.codes.OK:
            return Answer([], answer.json()["detail"])
        event = answer.json()["event_id"]
        results, kind = [], ""
        with self.client.stream("GET", f"gradio_api/call/{name}/{event}") as lines:
            for line in lines.iter_lines():
                field, _, text = line.partition(": ")
                if field == "event":
                    kind = text
                elif field == "data" and kind == "error":
                    return Answer(results, json.loads(text)["error"])
                elif field == "data" and kind in ("generating", "complete"):
                    results += json.loads(text) or []
        return Answer(results, None)
