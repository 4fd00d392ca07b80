"""The speed of each model alone: the app measures it by itself, once a model is loaded and nobody needs the machine.

A person's own question goes first: it ends the measuring, which is tried again for a while.
"""

from __future__ import annotations

import threading
import time
from contextvars import copy_context

import psutil

from ui.app_state import App, Timing, speed_note
from ui.chat.turn import Turn
from ui.html import Precision
from upq.errors import UserError
from upq.jobs import ModelKey, is_busy

#: The page draws the end of the answers first, and somebody may need the machine for long: pauses, and their length in
#: seconds.
TRIES, PAUSE_S = 60, 2.0
#: Beyond this load of all cores, over so many seconds, nothing is timed.
BUSY_PERCENT, LOOK_S = 35.0, 0.5


def measure(app: App, turn: Turn) -> threading.Thread:
    """Start to time, in the background, those models of a turn whose speed on this machine is not known.

    It happens in the caller's context, and so with what they may see.
    """
    thread = threading.Thread(target=copy_context().run, args=(_measure, app, turn), daemon=True)
    thread.start()
    return thread


def _measure(app: App, turn: Turn) -> None:
    if not app.measuring.acquire(blocking=False):
        return  # what is missing then is measured after the next answer
    try:
        for _ in range(TRIES):
            time.sleep(PAUSE_S)
            missing = _missing(app, turn)
            if not missing:
                return
            for precision, key in missing.items():
                _time(app, turn.run_id, precision, key)
    finally:
        app.measuring.release()


def others_compute() -> bool:
    """Whether other programs keep the machine busy: a speed beside them would be theirs as much as the model's."""
    return psutil.cpu_percent(LOOK_S) > BUSY_PERCENT


def _missing(app: App, turn: Turn) -> dict[Precision, ModelKey]:
    """The models of a turn that are loaded and were not timed."""
    known = {precision: app.badges.get(key, {}) for precision, key in turn.models.items()}
    return {
        precision: key
        for precision, key in turn.models.items()
        if "backend" in known[precision] and "fair" not in known[precision]
    }


def _time(app: App, run_id: int | None, precision: Precision, key: ModelKey) -> None:
    """Time one model, unless somebody needs the machine, or the model is gone."""

    def is_needed() -> bool:
        return is_busy() or app.is_busy()

    if is_needed() or others_compute() or not app.timing_lock.acquire(blocking=False):
        return
    try:
        served = app.models.get(run_id, precision, key.source)
        piece = served.time_alone(is_needed)
    except UserError:
        return
    finally:
        app.timing_lock.release()
    if piece is None:
        return
    fair: Timing = {"tokens_per_s": piece.tokens_per_s, "first_token_s": piece.first_token_s}
    app.badges[key] = {**app.badges[key], "fair": fair}
    app.store.set_note(speed_note(key), piece.tokens_per_s)
    app.timed += 1
