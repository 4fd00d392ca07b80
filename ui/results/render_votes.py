"""Blind votes on runs side by side, as pure functions."""

from __future__ import annotations

from collections.abc import Mapping

from ui.html import Html, join, notice, table, tag
from ui.html.votes import SHARE_MEANING, TALLY_HEAD, TALLY_NUMBERS, tally_cells
from upq.evaluation import Tally


def votes_table(names: Mapping[int, str], tallies: Mapping[int, list[Tally]]) -> Html:
    """Draw what the votes on each run say. names: what each run is called."""
    rows = [
        [names[run], *tally_cells(tally)] for run, of_run in tallies.items() for tally in of_run
    ]
    if not rows:
        return notice(
            "empty", "No votes on these runs yet.", "Chat asks for them in its view Blind."
        )
    numbers = [column + 1 for column in TALLY_NUMBERS]
    drawn = table(["run", *TALLY_HEAD], rows, numeric=numbers, class_="tallies")
    return join([drawn, tag("p", SHARE_MEANING, class_="hint")])
