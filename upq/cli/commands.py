"""What each command of the command line does with its flags, and the tables that it prints."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from tabulate import tabulate

from upq.cli import chat as chatting
from upq.cli import demo as demonstration
from upq.cli import evaluate as eval_command
from upq.config import CheckConfig, RunConfig, preset, settings, with_settings
from upq.errors import UserError
from upq.evaluation import scores
from upq.jobs import follow, worker_main
from upq.store import data_dir, open_store


def run(options: Any) -> int | None:
    """Quantize a model and print what was measured; 1 unless the run is done."""
    if options.help_settings:
        rows = [
            (path, spec["value"], spec["help"])
            for path, spec in settings(preset(options.preset, options.method))
        ]
        print(
            tabulate(
                rows, headers=["setting", options.preset, "meaning"], maxcolwidths=[None, 20, 70]
            )
        )
        return None
    config = config_of(options)
    follow.vet(config)
    folder = data_dir(options.data_dir)
    run = follow.run_and_wait(folder, lambda store: store.enqueue(config), print, options.processes)
    result = follow.summary(open_store(folder), run.id)
    _print_table(result["artifacts"] + result["baselines"])
    _write(options.json, result)
    return 0 if run.state == "done" else 1


def config_of(options: Any) -> RunConfig:
    """The config that the flags of `run` describe."""
    for pair in options.set:
        if "=" not in pair:
            raise UserError("bad_config", f"--set {pair} has no equals sign; expected KEY=VALUE.")
    changes = dict(pair.split("=", 1) for pair in options.set)
    start = preset(options.preset, options.method)
    return with_settings(start, {"model.source": options.model} | changes)


def demo(options: Any) -> int | None:
    """The whole way of a run in the terminal: quantize, chat, checks."""
    result = demonstration.demo(data_dir(options.data_dir), options.model, options.preset, print)
    print(f"\n{result['model']}. {result['reference_note']}")
    _print_table(result["artifacts"] + result["baselines"])
    for one in result["chat"]:
        print(f"\n> {one['prompt']}")
        for precision in ("FP16", "INT4", "INT2"):
            print(f"  {precision}: {one[precision]}")
    _print_scores("builtin", result["checks"])
    print(f"\n{result['seconds']:.0f} s in all")
    _write(options.json, result)
    return None


def list_runs(options: Any) -> None:
    """A table of all runs."""
    rows = [
        (
            run.id,
            run.kind,
            run.method,
            run.preset,
            run.model,
            run.state,
            run.stage,
            run.error_message,
        )
        for run in open_store(data_dir(options.data_dir)).runs()
    ]
    headers = ["run", "kind", "method", "preset", "model", "state", "stage", "error"]
    print(
        tabulate(rows, headers=headers, maxcolwidths=60)
        if rows
        else "No runs yet: python -m upq run"
    )


def show(options: Any) -> None:
    """What is known of a run: measurements and log."""
    store = open_store(data_dir(options.data_dir))
    run = store.run(options.run)
    print(
        f"run {run.id}: {run.kind} {run.method} {run.preset} on {run.model}, {run.state} {run.error_message}"
    )
    if run.error_hint:
        print(run.error_hint)
    result = follow.summary(store, run.id)
    _print_table(result["artifacts"] + result["baselines"])
    for _, line in store.log_lines(run.id):
        print(f"  {line}")
    _write(options.json, result)


def cancel(options: Any) -> None:
    """Ask a run to stop."""
    print(open_store(data_dir(options.data_dir)).request_cancel(options.run))


def resume(options: Any) -> int:
    """Let a run go on and wait for it."""
    folder = data_dir(options.data_dir)

    def resume(store: Any) -> int:
        print(store.resume(options.run))
        return options.run

    return 0 if follow.run_and_wait(folder, resume, print).state == "done" else 1


def chat(options: Any) -> None:
    """A chat in the terminal with several precisions at once."""
    store = open_store(data_dir(options.data_dir))
    chatting.chat(store, options.run, _precisions(options.precision))


def check(options: Any) -> int:
    """Put a suite to a run's models and print the scores."""
    folder = data_dir(options.data_dir)
    precisions = _precisions(options.precision)
    config = CheckConfig(
        suite=options.suite,
        precisions=tuple(precisions),
        run_id=options.run,
        model=open_store(folder).run(options.run).model,
        path=str(Path(options.path).absolute()) if options.path else None,
        max_tokens=options.max_tokens,
        **_suite_options(options),
    )
    run, rows = follow.check(folder, config, print)
    _print_scores(options.suite, rows)
    _write(options.json, {"run": options.run, "checks": rows})
    return 0 if run.state == "done" else 1


def evaluate(options: Any) -> None:
    """Measure the artifacts of a run, task by task."""
    folder = data_dir(options.data_dir)
    text = Path(options.text) if options.text else None
    result: dict[str, Any] = {"run": options.run}
    for task in eval_command.chosen_tasks(options.tasks):
        if task == "fidelity":
            result["artifacts"] = eval_command.fidelity(folder, options.run, text, options.tokens)
            _print_table(result["artifacts"])
        else:
            values = {"max_tokens": options.max_tokens, **_suite_options(options)}
            chosen = _precisions(options.precision)
            result[task] = eval_command.suite_rows(
                folder, options.run, task, chosen, options.data, values, print
            )
            _print_scores(task, result[task])
        _write(options.json, result)


def _suite_options(options: Any) -> dict[str, Any]:
    return {name: getattr(options, name) for name in ("limit", "per_subject", "seed")}


def doctor(options: Any) -> int:
    """Say what is wrong with the data folder; 1 if anything is."""
    problems = open_store(data_dir(options.data_dir)).doctor()
    print("\n".join(problems) or "The data folder is in order.")
    return 1 if problems else 0


def worker(options: Any) -> None:
    """Execute queued runs until told to stop."""
    worker_main(data_dir(options.data_dir), options.device, once=options.once)


def count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{number} is negative; expected 0 or more")
    return number


def _precisions(text: str) -> list[str]:
    chosen = [one.strip().upper() for one in text.split(",") if one.strip()]
    unknown = [one for one in chosen if one not in ("FP16", "INT4", "INT2")]
    if unknown or not chosen:
        raise UserError(
            "bad_precision", f"--precision is {text!r}; expected some of FP16, INT4, INT2."
        )
    return chosen


def _print_table(rows: list[dict[str, Any]]) -> None:
    columns = {
        "label": "model",
        "bits_per_weight": "bits/weight",
        "size_bytes": "MB",
        "kl": "KL to FP16",
        "kl_low": "from",
        "kl_high": "to",
        "kl_p95": "KL p95",
        "top1": "top-1",
        "agreed_median": "agrees for",
        "ppl": "perplexity",
        "text_ppl": "text perplexity",
        "tokens": "tokens",
    }
    shown = [name for name in columns if any(name in row for row in rows)]
    table = [[_cell(name, row.get(name)) for name in shown] for row in rows]
    print(tabulate(table, headers=[columns[name] for name in shown], floatfmt=".3f"))


def _print_scores(suite: str, rows: list[dict[str, Any]]) -> None:
    """Scores with 95 % intervals; lost, gained and p compare with FP16."""
    print(f"\nSuite {suite}, 95 % intervals in brackets")
    print(tabulate([scores.readable(suite, row) for row in rows], headers="keys"))


def _cell(name: str, value: Any) -> Any:
    return round(value / 1e6, 1) if name == "size_bytes" and value else value


def _write(path: str | None, result: dict[str, Any]) -> None:
    if path:
        try:
            Path(path).write_text(json.dumps(result, indent=1), encoding="utf-8")
        except OSError as error:
            raise UserError(
                "not_writable", f"{path} could not be written: {error.strerror}."
            ) from error
