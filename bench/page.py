"""A page of the app without a browser: it asks the server what Gradio's own page asks, in the same order.

Like the browser it joins the queue with a POST, hears of all its events from one stream of server-sent events that
closes when nothing is pending, and lets a changed state or a finished event trigger what hangs on it. Nothing is drawn.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import httpx

API = "gradio_api"
#: An event that is not answered by then is lost. Seconds.
LOST_S = 60.0
#: An idle connection is kept for less than the five seconds after which the server closes it: a browser would send
#: again what meets a connection that is just being closed.
KEEP_S = 2.0


@dataclass
class Tally:
    """What one page met. Seconds by the kind of event; `lost` and `failed` name the events."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    lost: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


class Page:
    """One session on a running app. Everything happens in one event loop."""

    def __init__(self, url: str) -> None:
        self.tally = Tally()
        limits = httpx.Limits(keepalive_expiry=KEEP_S)
        self._client = httpx.AsyncClient(base_url=url, timeout=LOST_S, limits=limits)
        self._session = secrets.token_hex(6)
        self._values: dict[int, Any] = {}
        self._names: dict[str, int] = {}
        self._tabs: dict[str, int] = {}
        self._events: dict[int, dict[str, Any]] = {}
        self._pending: dict[int, int] = defaultdict(int)
        self._again: set[int] = set()
        self._resting: set[int] = set()  # timers that do not tick now
        self._answers: dict[str, asyncio.Future[dict[str, Any]]] = {}
        self._early: dict[str, dict[str, Any]] = {}
        self._stream: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Read the page's config and fire what happens when it is loaded."""
        config = (await self._client.get("config")).json()
        for component in config["components"]:
            properties = component["props"]
            self._values[component["id"]] = properties.get("value")
            if name := properties.get("elem_id"):
                self._names[name] = component["id"]
            if properties.get("active") is False:
                self._resting.add(component["id"])
            if component["type"] == "tabitem":
                self._tabs[properties["id"]] = component["id"]
        self._events = {event["id"]: event for event in config["dependencies"]}
        self.fire(None, "load")

    async def close(self) -> None:
        """Leave as a closed tab does."""
        for task in [*self._tasks, *filter(None, [self._stream])]:
            task.cancel()
        await self._client.aclose()

    async def poll(self, until: float, every_s: float) -> None:
        """Let whatever beats on the page tick until a monotonic time, unless it rests. A tick is left out while the
        last one is on its way.
        """
        targets = [at for event in self._events.values() for at in event["targets"]]
        timers = {component for component, what in targets if what == "tick"}
        while time.monotonic() < until:
            for timer in timers - self._resting:
                self.fire(timer, "tick")
            await asyncio.sleep(every_s)

    async def settle(self) -> None:
        """Wait until nothing is on its way."""
        while any(self._pending.values()):
            await asyncio.sleep(0.01)

    def value(self, name: str) -> Any:
        """What a component with this elem_id shows."""
        return self._values[self._names[name]]

    def type(self, name: str, value: Any) -> None:
        """Put a value into a component."""
        self._values[self._names[name]] = value

    def click(self, name: str) -> None:
        """Press a button."""
        self.fire(self._names[name], "click")

    @property
    def tabs(self) -> list[str]:
        """The ids of its tabs."""
        return list(self._tabs)

    def look_at(self, tab: str) -> None:
        """Open a tab by its id."""
        self.fire(self._tabs[tab], "select")

    def fire(self, component: int | None, what: str) -> None:
        """Send the events that hang on something that happened to a component; None: to the page."""
        for event in self._events.values():
            if any(at[1] == what and component in (None, at[0]) for at in event["targets"]):
                self._send(event)

    def _send(self, event: dict[str, Any]) -> None:
        number, mode = event["id"], event["trigger_mode"]
        if self._pending[number] and mode != "multiple":
            if mode == "always_last":
                self._again.add(number)
            return
        self._pending[number] += 1
        self._start(self._one(event))

    async def _one(self, event: dict[str, Any]) -> None:
        kind = _kind(event)
        started = time.monotonic()
        try:
            output = await asyncio.wait_for(self._ask(event), LOST_S)
            self.tally.seconds[kind].append(time.monotonic() - started)
            self._take(event, output)
        except (TimeoutError, asyncio.TimeoutError):
            self.tally.lost.append(kind)
        except (httpx.HTTPError, RuntimeError) as error:
            self.tally.failed.append(f"{kind}: {type(error).__name__} {error}")
        finally:
            self._pending[event["id"]] -= 1
        if event["id"] in self._again:
            self._again.discard(event["id"])
            self._send(event)

    async def _ask(self, event: dict[str, Any]) -> dict[str, Any]:
        """The output of an event: through the queue, or in the answer itself where it goes past the queue."""
        body = {
            "data": [self._values.get(component) for component in event["inputs"]],
            "fn_index": event["id"],
            "session_hash": self._session,
            "event_data": None,
            "trigger_id": event["targets"][0][0] if event["targets"] else None,
        }
        if event["queue"] is False:
            name = event["api_name"] or "predict"
            answer = await self._client.post(f"{API}/run/{name}", json=body)
            answer.raise_for_status()
            return answer.json()
        joined = await self._client.post(f"{API}/queue/join", json=body)
        joined.raise_for_status()
        number = joined.json()["event_id"]
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        if number in self._early:
            answer.set_result(self._early.pop(number))
        elif self._stream is None or self._stream.done():
            self._stream = asyncio.create_task(self._listen())
        message = await answer
        if not message["success"]:
            raise RuntimeError(str(message["output"].get("error")))
        return message["output"]

    async def _listen(self) -> None:
        """Hear of events until the server closes the stream, which it does when none is pending."""
        parameters = {"session_hash": self._session}
        address = f"{API}/queue/data"
        async with self._client.stream("GET", address, params=parameters, timeout=None) as stream:
            async for line in stream.aiter_lines():
                if not line.startswith("data:"):
                    continue
                message = json.loads(line[5:])
                if message["msg"] == "process_completed":
                    number = message["event_id"]
                    waiting = self._answers.pop(number, None)
                    if waiting is not None and not waiting.done():  # done: nobody waits any more
                        waiting.set_result(message)
                    elif waiting is None:
                        self._early[number] = message
                elif message["msg"] == "close_stream":
                    break
        if self._answers:  # one joined while this stream was closing
            self._stream = asyncio.create_task(self._listen())

    def _take(self, event: dict[str, Any], output: dict[str, Any]) -> None:
        for component, value in zip(event["outputs"], output.get("data", []), strict=False):
            if isinstance(value, dict) and value.get("__type__") == "update":
                if "value" in value:
                    self._values[component] = value["value"]
                if "active" in value:
                    (self._resting.discard if value["active"] else self._resting.add)(component)
            else:
                self._values[component] = value
        for state in output.get("changed_state_ids") or []:
            self.fire(state, "change")
        for follower in self._events.values():
            if follower["trigger_after"] == event["id"]:
                self._send(follower)

    def _start(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _kind(event: dict[str, Any]) -> str:
    """What an event is called in the tables: a tick is a poll, all else goes by what triggers it."""
    names = {at[1] for at in event["targets"]}
    return "poll" if "tick" in names else "after" if not names else min(names)
