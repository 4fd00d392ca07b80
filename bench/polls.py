"""Twenty pages that poll beside three that chat and a run that trains: how long a poll takes, and whether all arrive.

A poll is what the browser does once a second while something is at work (bench.page). It is slow where a person would
see a page that stands still. Of the pages that watch, four look at each tab. Each chatting page asks its own question
over and over, all three precisions at once.
"""

from __future__ import annotations

import asyncio
import os
import re
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import studio
from bench.page import Page
from upq.config import PRECISIONS, preset
from upq.store import Store, open_store

WATCHING = 20
QUESTIONS = (
    "Name three colours.",
    "What is the capital of France?",
    "Write one sentence about rain.",
)
#: A poll that takes longer is one that a person waits for.
ALLOWED_P95_S = 0.5
SHIPPED_S = 300.0
#: A page polls so often, seconds.
POLL_S = 1.0
#: What the line below an answer tells behind its tokens: seconds.
MEASURED = re.compile(r"(?<=token|okens) · [^<]*")


async def measure(folder: Path, seconds: float) -> tuple[list[dict[str, Any]], list[str]]:
    """A row for each kind of event, and what was wrong."""
    with studio.running(folder) as app:
        store = open_store(folder)
        await _shipped(store)
        store.enqueue(preset("quick"))
        pages = [Page(app.url) for _ in range(WATCHING + len(QUESTIONS))]
        for page in pages:
            await page.open()
        await asyncio.gather(*(page.settle() for page in pages))
        for number, page in enumerate(pages[:WATCHING]):
            page.look_at(page.tabs[number % len(page.tabs)])
        await asyncio.gather(*(page.settle() for page in pages))
        for page in pages:
            page.tally.seconds.clear()
        before, cpu_before, until = store.latest_revision(), app.cpu_s(), time.monotonic() + seconds
        chats = [
            _chat(page, text, until) for page, text in zip(pages[WATCHING:], QUESTIONS, strict=True)
        ]
        polls = [
            _poll(page, number * POLL_S / len(pages), until) for number, page in enumerate(pages)
        ]
        answers, _ = await asyncio.gather(asyncio.gather(*chats), asyncio.gather(*polls))
        cpu_s = app.cpu_s() - cpu_before
        changes = store.latest_revision() - before
        rows = _rows(pages, seconds, cpu_s, changes, answers)
        problems = [*_mixed(answers), *await _lost(store, pages)]
        for page in pages:
            await page.close()
        store.close()
    polled = next(row for row in rows if row["event"] == "poll")
    if polled["p95 s"] > ALLOWED_P95_S:
        problems.append(f"p95 of a poll is {polled['p95 s']:.2f} s, allowed are {ALLOWED_P95_S} s")
    return rows, problems


async def _shipped(store: Store) -> None:
    """Wait until the models that ship with the app are there to chat with."""
    until = time.monotonic() + SHIPPED_S
    while len(store.artifacts()) < 2:
        if time.monotonic() > until:
            raise RuntimeError("the shipped models did not come")
        await asyncio.sleep(POLL_S)


async def _poll(page: Page, phase_s: float, until: float) -> None:
    """Pages that people opened one after the other do not ask at the same moment."""
    await asyncio.sleep(phase_s)
    await page.poll(until, POLL_S)


async def _chat(page: Page, question: str, until: float) -> list[tuple[str, ...]]:
    """Ask the same in a new chat again and again; what the three columns show at the end of each turn."""
    answers = []
    while time.monotonic() < until:
        page.click("new-chat")
        await page.settle()
        page.type("message", question)
        page.click("send")
        await page.settle()
        columns = [str(page.value(f"past-{name.lower()}")) for name in PRECISIONS]
        answers.append(tuple(MEASURED.sub("", column) for column in columns))
    return answers


def _mixed(answers: Sequence[Sequence[tuple[str, ...]]]) -> list[str]:
    """Greedy answers to one question are alike each time, and hold the question of their own page only."""
    problems = []
    for mine, turns in zip(QUESTIONS, answers, strict=True):
        if len(set(turns)) != 1:
            problems.append(f"{len(set(turns))} different answers to {mine!r}")
        shown = " ".join(text for turn in turns for text in turn)
        if mine not in shown or any(other in shown for other in QUESTIONS if other != mine):
            problems.append(f"the page of {mine!r} shows something else")
    return problems


async def _lost(store: Store, pages: Sequence[Page]) -> list[str]:
    """What was not answered, and pages that show something else than the store holds once nothing moves."""
    problems = [f"lost: {kind}" for page in pages for kind in page.tally.lost]
    problems += [f"failed: {words}" for page in pages for words in page.tally.failed]
    (live,) = [run for run in store.runs() if run.state in ("queued", "running")]
    store.request_cancel(live.id)
    until = time.monotonic() + SHIPPED_S
    while store.run(live.id).state != "cancelled" and time.monotonic() < until:
        await asyncio.sleep(POLL_S)
    await asyncio.gather(*(page.poll(time.monotonic() + 3 * POLL_S, POLL_S) for page in pages))
    await asyncio.gather(*(page.settle() for page in pages))
    for page in pages:
        page.look_at("quantize")
    await asyncio.gather(*(page.settle() for page in pages))
    behind = sum("cancelled" not in str(page.value("history")).lower() for page in pages)
    return [*problems, f"{behind} pages missed the end of the run"] if behind else problems


def _rows(
    pages: Sequence[Page],
    seconds: float,
    cpu_s: float,
    changes: int,
    answers: Sequence[Sequence[Any]],
) -> list[dict[str, Any]]:
    taken: dict[str, list[float]] = {}
    for page in pages:
        for kind, times in page.tally.seconds.items():
            taken.setdefault(kind, []).extend(times)
    turns = sum(map(len, answers))
    return [
        {
            "event": kind,
            "count": len(times),
            "p50 s": statistics.median(times),
            "p95 s": statistics.quantiles(times, n=20)[-1] if len(times) > 1 else times[0],
            "max s": max(times),
            "pages": len(pages),
            "seconds": seconds,
            "CPU of the app s": cpu_s,
            "changes": changes,
            "turns": turns,
            "cores": os.cpu_count(),
        }
        for kind, times in sorted(taken.items(), key=lambda item: item[0] != "poll")
    ]
