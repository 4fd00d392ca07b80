"""A store with runs as a worker leaves them, made without a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from upq.config import CheckConfig, RunConfig
from upq.evaluation import Marked, PromptResult, Verdict
from upq.evaluation.wikitext import Chunk
from upq.store import Store
from upq.store.lease import Lease

ENVIRONMENT: dict[str, Any] = {
    "commit": "0123456789ab+",
    "versions": {"upq": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"},
    "machine": {
        "platform": "Linux",
        "processor": "AMD EPYC",
        "cores": 2,
        "instructions": "AVX2",
        "memory_bytes": 16_000_000_000,
        "gpu": None,
        "gpu_bytes": None,
    },
}
KL = {"FP16": 0.0, "INT4": 0.12, "INT2": 1.3, "RTN INT4": 0.6, "RTN INT2": 13.0}
SIZES = {"FP16": 269_030_016, "INT4": 88_408_646, "INT2": 61_866_566}


class Lab:
    """A store and a clock that its worker moves."""

    def __init__(self, folder: Path) -> None:
        self.now = 1000.0
        self.store = Store(folder / "upq.db", clock=lambda: self.now)

    def begun(self, config: RunConfig, name: str = "") -> tuple[int, Lease]:
        """Return the id and the lease of a run that a worker has just claimed."""
        run_id = self.store.enqueue(config, name=name)
        run = self.store.claim("cpu@here:1", 1, 30.0)
        assert run is not None
        lease = self.store.lease(run)
        lease.environment(ENVIRONMENT)
        return run_id, lease

    def done(
        self, config: RunConfig, name: str = "", scale: float = 1.0, served_by: str = ""
    ) -> int:
        """Store a finished run of two minutes with curves and measurements, its KL times `scale`; return its id.

        served_by: an engine that answers with the artifacts by other arithmetic than they were measured with.
        """
        run_id, lease = self.begun(config, name)
        lease.stage("int2", 2)
        for step in range(12):
            self.now += 10
            names = ("held_out_kl_int2", "jsd", "int2_block_before", "int2_block_after")
            lease.metrics((series, step, scale / (step + 1), 0.0) for series in names)
        lease.metrics([("int2_tokens", 0, 8000.0, 0.0), ("int2_distill_tokens", 0, 512.0, 0.0)])
        lease.progress(2, 99.0, 0.0, "", 2_000_000_000, None)
        rows = [measurement(label, kl * scale) for label, kl in KL.items()]
        for row in rows:
            if served_by and row["label"] in ("INT4", "INT2"):
                row |= as_served(row, served_by)
        lease.save_measurements(rows)
        lease.finish("done")
        return run_id

    def checked(self, run_id: int, suite: str, results: dict[str, list[dict[str, Any]]]) -> None:
        """Store a finished check of a run. results holds the outcomes of each precision as JSON."""
        config = CheckConfig(suite=suite, precisions=tuple(results), run_id=run_id, model="bundled")
        self.store.enqueue_check(config)
        check = self.store.claim("cpu@here:1", 1, 30.0)
        assert check is not None
        lease = self.store.lease(check)
        for precision, found in results.items():
            for position, outcome in enumerate(found):
                lease.save_check_result(precision, position, outcome)
        lease.finish("done")


def measurement(label: str, kl: float) -> dict[str, Any]:
    """Return one measured model; the held-out answers are the same for all."""
    precision = label.removeprefix("RTN ")
    fidelity = {"kl": kl, "kl_low": 0.9 * kl, "kl_high": 1.1 * kl, "kl_p95": 3 * kl}
    return fidelity | {
        "label": label,
        "precision": precision,
        "top1": 1 / (1 + kl),
        "agreed_median": 12.0,
        "ppl": 1.8 * (1 + kl),
        "tokens": 2657,
        "bits_per_weight": {"FP16": 16.0, "INT4": 4.25, "INT2": 2.25}[precision],
        "size_bytes": SIZES[precision],
        "seconds": 5.0,
    }


def as_served(row: dict[str, Any], engine: str) -> dict[str, Any]:
    """Return what an engine gives where the rest of a row was computed by transformers."""
    figures = {f"served_{name}": 1.01 * row[name] for name in ("kl", "ppl")}
    return {**figures, "served_top1": 0.99 * row["top1"], "served_by": engine}


def verdicts(*followed: bool, response: str = "an answer") -> list[dict[str, Any]]:
    """Return the outcomes of a suite with one instruction a prompt."""
    found = []
    for key, is_followed in enumerate(followed):
        verdict = Verdict(
            instruction_id="length:words", strict=is_followed, loose=is_followed, reason="found 3"
        )
        found.append(PromptResult(key=key, response=response, verdicts=(verdict,)).to_json())
    return found


def marks(*right: bool) -> list[dict[str, Any]]:
    """Return the outcomes of MMLU."""

    def scores(is_right: bool) -> tuple[float, ...]:
        return (0.0, -1.0, -2.0, -3.0) if is_right else (-9.0, 0.0, -1.0, -2.0)

    return [
        Marked(key=key, subject="anatomy", answer=0, scores=scores(is_right)).to_json()
        for key, is_right in enumerate(right)
    ]


def chunks(*nll_per_token: float) -> list[dict[str, Any]]:
    """Return the outcomes of WikiText-2."""
    return [Chunk(nll=nll * 2047, tokens=2047).to_json() for nll in nll_per_token]
