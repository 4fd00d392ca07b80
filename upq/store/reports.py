"""What runs reported, read back: curves, logs, measurements, artifacts, verdicts, answers and notes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from upq.artifact.format import Artifact
from upq.store import artifacts as store_artifacts
from upq.store.artifacts import ArtifactRow
from upq.store.connections import Connections
from upq.store.database import set_note


class Reports:
    """The half of the store that shows what came of the runs. Safe to use from several threads."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    def metrics(self, run_id: int) -> list[dict[str, Any]]:
        """The points of all curves: dicts of series, step, value, at_s.

        at_s: seconds that the run had been worked on when the point was taken, pauses not counted.
        """
        sql = "SELECT series, step, value, at_s FROM metrics WHERE run_id = ? ORDER BY series, step"
        return self._list(sql, [run_id])

    def log_lines(self, run_id: int, limit: int = 200) -> list[tuple[float, str]]:
        """The last lines of the log, oldest first: (unix seconds, line)."""
        sql = "SELECT at, line FROM log WHERE run_id = ? ORDER BY id DESC LIMIT ?"
        return [(row["at"], row["line"]) for row in reversed(self._list(sql, [run_id, limit]))]

    def measurements(self, run_id: int | None = None) -> list[dict[str, Any]]:
        """Fidelity rows of a run, or of all runs."""
        sql = "SELECT * FROM measurements WHERE run_id = coalesce(?, run_id) ORDER BY rowid"
        return [{**row, "extra": json.loads(row["extra"])} for row in self._list(sql, [run_id])]

    def artifacts(self, run_id: int | None = None) -> list[ArtifactRow]:
        """The artifacts of a run, or of all runs, without their tensors."""
        with self._connections.read() as db:
            return store_artifacts.rows(db, run_id)

    def load_artifact(self, run_id: int, precision: str) -> Artifact:
        """Read an artifact, every byte checked.

        Raises UserError: artifact_not_found, artifact_damaged.
        """
        return store_artifacts.load(self._connections, run_id, precision)

    def check_results(self, run_id: int) -> list[dict[str, Any]]:
        """Dicts of precision, position, result, of a check run."""
        sql = (
            "SELECT precision, position, result FROM check_results WHERE run_id = ?"
            " ORDER BY precision, position"
        )
        return [{**row, "result": json.loads(row["result"])} for row in self._list(sql, [run_id])]

    def cached_answers(self, key: str) -> dict[str, list[int]]:
        """Teacher answers under `key`: prompt digest -> token ids."""
        rows = self._list("SELECT prompt, tokens FROM answers WHERE key = ?", [key])
        return {row["prompt"]: json.loads(row["tokens"]) for row in rows}

    def save_answers(self, key: str, answers: Mapping[str, list[int]]) -> None:
        """Store teacher answers under `key`; existing ones are kept."""
        rows = [(key, prompt, json.dumps(tokens)) for prompt, tokens in answers.items()]
        with self._connections.write() as db:
            db.conn.executemany("INSERT INTO answers VALUES (?, ?, ?) ON CONFLICT DO NOTHING", rows)

    def note(self, key: str) -> Any:
        """The JSON value stored under `key`, or None."""
        rows = self._list("SELECT value FROM notes WHERE key = ?", [key])
        return json.loads(rows[0]["value"]) if rows else None

    def set_note(self, key: str, value: Any) -> None:
        """Store a small JSON value, such as a speed measured on this machine."""
        with self._connections.write() as db:
            set_note(db, key, value)

    def _list(self, sql: str, parameters: list[Any]) -> list[dict[str, Any]]:
        with self._connections.read() as db:
            return list(db.query(sql, parameters))
