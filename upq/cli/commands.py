"""What each command of the command line does with its flags, and the tables that it prints.

A command imports what it needs when it is called: torch and transformers take seconds, and a wrong flag, a list of the
runs or a page of help need neither.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from tabulate import tabulate

from upq.config import PRECISIONS, TASKS, CheckConfig, RunConfig, preset, settings, with_settings
from upq.errors import UserError
from upq.units import duration

if TYPE_CHECKING:
    from upq.store import Run, Store


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

    from upq.jobs import follow
    from upq.quantize.ready import ready

    config = ready(config, _changes(options))
    folder = data_folder(options)

    def start(store: Store) -> int:
        return store.enqueue(config, name=options.name, note=options.note)

    run = follow.run_and_wait(folder, start, print, options.processes)
    result = follow.summary(store_of(options), run.id)
    _print_table(result["artifacts"] + result["baselines"])
    write_json(options.json, result)
    return 0 if run.state == "done" else 1


def config_of(options: Any) -> RunConfig:
    """The config that the flags of `run` describe."""
    start = preset(options.preset, options.method)
    return with_settings(start, {"model.source": options.model} | _changes(options))


def _changes(options: Any) -> dict[str, str]:
    """Dotted setting -> text of each `--set`. Raises UserError("bad_config")."""
    for pair in options.set:
        if "=" not in pair:
            raise UserError("bad_config", f"--set {pair} has no equals sign; expected KEY=VALUE.")
    return dict(pair.split("=", 1) for pair in options.set)


def demo(options: Any) -> int | None:
    """The whole way of a run in the terminal: quantize, chat, checks."""
    from upq.cli.demo import demo as whole_way

    result = whole_way(data_folder(options), options.model, options.preset, print)
    print(f"\n{result['model']}. {result['reference_note']}")
    _print_table(result["artifacts"] + result["baselines"])
    for one in result["chat"]:
        print(f"\n> {one['prompt']}")
        for precision in PRECISIONS:
            print(f"  {precision}: {one[precision]}")
    _print_scores("builtin", result["checks"])
    print(f"\n{result['seconds']:.0f} s in all")
    write_json(options.json, result)
    return None


def list_runs(options: Any) -> None:
    """A table of the runs that fit the flags."""
    from upq.store import Wanted

    wanted = Wanted(
        text=options.search,
        name=options.name,
        note=options.note,
        state=options.state,
        starred=options.starred,
    )
    rows = [
        (
            run.id,
            "*" if run.starred else "",
            run.kind,
            run.name,
            run.method,
            run.preset,
            run.model,
            run.state,
            run.stage,
            left(run),
            run.error_message,
            run.note,
        )
        for run in store_of(options).search(wanted)
    ]
    head = [
        "run",
        "star",
        "kind",
        "name",
        "method",
        "preset",
        "model",
        "state",
        "stage",
        "left",
        "error",
        "note",
    ]
    nothing = "No run fits." if wanted != Wanted() else "No runs yet: python -m upq run"
    print(tabulate(rows, headers=head, maxcolwidths=40) if rows else nothing)


def show(options: Any) -> None:
    """What is known of a run: what people wrote on it, measurements and log. Flags write on it first."""
    from upq.store import Labels

    store = store_of(options)
    labels = Labels(name=options.name, note=options.note, starred=options.star)
    run = store.label(options.run, labels)
    title = f"run {run.id}: {run.kind} {run.method} {run.preset} on {run.model}, {run.state}"
    print(" ".join(filter(None, [title, run.error_message])))
    for line in filter(
        None, [run.error_hint, run.name, run.note, "starred" if run.starred else ""]
    ):
        print(line)
    if run.state == "running":
        steps = f"{run.stage_step} of {run.stage_total}" if run.stage_total else "begun"
        print(f"stage {run.stage or 'load'}: {steps}{', ' if left(run) else ''}{left(run)}")

    from upq.jobs import follow

    result = follow.summary(store, run.id)
    _print_table(result["artifacts"] + result["baselines"])
    for _, line in store.log_lines(run.id):
        print(f"  {line}")
    write_json(options.json, result)


def left(run: Run) -> str:
    """How long the stage of a run at work still takes, such as "3 min 20 s left in it"; "" where that is not known."""
    if run.state != "running" or run.eta_s is None:
        return ""
    return f"{duration(run.eta_s)} left in it"


def cancel(options: Any) -> None:
    """Ask a run to stop."""
    print(store_of(options).request_cancel(options.run))


def resume(options: Any) -> int:
    """Let a run go on and wait for it."""
    store_of(options).run(options.run)  # before anything heavy is imported

    from upq.jobs import follow

    def go_on(store: Store) -> int:
        print(store.resume(options.run))
        return options.run

    return 0 if follow.run_and_wait(data_folder(options), go_on, print).state == "done" else 1


def delete(options: Any) -> int:
    """Delete a run, its models and its checks, after a question; 1 unless it was done. One at work is refused first."""
    store = store_of(options)
    store.require_ended(options.run)
    run = store.run(options.run)
    if not options.yes:
        models = [row.precision for row in store.artifacts(run.id)]
        what = f"{run.kind} run {run.id} ({run.model}, {run.state})"
        kept = f" with {' and '.join(models)}" if models else ""
        question = f"Delete {what}{kept} and its checks? This cannot be undone. [y/N] "
        if answered(question).lower() not in ("y", "yes"):
            print("Nothing was deleted.")
            return 1
    store.delete(run.id)
    print(f"Run {run.id} is deleted.")
    return 0


def answered(question: str) -> str:
    """What a person types; nothing where nobody can."""
    try:
        return input(question).strip()
    except EOFError:
        print()
        return ""


def check(options: Any) -> int:
    """Put a suite to a run's models and print the scores."""
    precisions = named_precisions(options.precision)
    config = CheckConfig(
        suite=options.suite,
        precisions=tuple(precisions),
        run_id=options.run,
        model=store_of(options).run(options.run).model,
        path=str(Path(options.path).absolute()) if options.path else None,
        max_tokens=options.max_tokens,
        **_suite_options(options),
    )

    from upq.jobs import follow

    run, rows = follow.check(data_folder(options), config, print)
    _print_scores(options.suite, rows)
    write_json(options.json, {"run": options.run, "checks": rows})
    return 0 if run.state == "done" else 1


def evaluate(options: Any) -> None:
    """Measure the artifacts of a run, task by task."""
    tasks, precisions = _tasks(options.tasks), named_precisions(options.precision)
    store_of(options).run(options.run)

    from upq.cli import evaluate as evaluation

    folder = data_folder(options)
    text = Path(options.text) if options.text else None
    result: dict[str, Any] = {"run": options.run}
    for task in tasks:
        if task == "fidelity":
            result["artifacts"] = evaluation.fidelity(folder, options.run, text, options.tokens)
            _print_table(result["artifacts"])
        else:
            values = {"max_tokens": options.max_tokens, **_suite_options(options)}
            result[task] = evaluation.suite_rows(
                folder, options.run, task, precisions, options.data, values, print
            )
            _print_scores(task, result[task])
        write_json(options.json, result)


def _suite_options(options: Any) -> dict[str, Any]:
    return {name: getattr(options, name) for name in ("limit", "per_subject", "seed")}


def doctor(options: Any) -> int:
    """Say what this machine has for the work and what is wrong with the data folder; 1 if anything is."""
    from upq.cli import doctor as examination

    folder, store = data_folder(options), store_of(options)
    print("\n".join(examination.facts(folder)))
    problems = store.doctor()
    print("\n".join(problems) or "The data folder is in order.")
    return 1 if problems else 0


def worker(options: Any) -> NoReturn:
    """Execute queued runs until told to stop, then end the process."""
    from upq.jobs import leave, worker_main

    worker_main(data_folder(options), options.device, once=options.once)
    leave()


def data_folder(options: Any) -> Path:
    """The data folder that the flags name. Raises UserError("not_writable")."""
    from upq.store import data_dir

    return data_dir(options.data_dir)


def store_of(options: Any) -> Store:
    """The store of the data folder that the flags name."""
    from upq.store import open_store

    return open_store(data_folder(options))


def count(text: str) -> int:
    """A flag's value that is a whole number of 0 or more. Raises argparse.ArgumentTypeError."""
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{number} is negative; expected 0 or more")
    return number


def _tasks(text: str) -> list[str]:
    """Names of TASKS from a comma-separated list. Raises UserError("bad_suite")."""
    tasks = [name.strip() for name in text.split(",") if name.strip()]
    if not tasks or not set(tasks) <= set(TASKS):
        raise UserError("bad_suite", f"--tasks is {text!r}; expected some of {', '.join(TASKS)}.")
    return tasks


def named_precisions(text: str) -> list[str]:
    chosen = [one.strip().upper() for one in text.split(",") if one.strip()]
    unknown = [one for one in chosen if one not in PRECISIONS]
    if unknown or not chosen:
        raise UserError(
            "bad_precision",
            f"--precision is {text!r}; expected some of {', '.join(PRECISIONS)}.",
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
        "served_kl": "KL as served",
        "served_top1": "top-1 as served",
        "served_ppl": "perplexity as served",
        "text_ppl": "text perplexity",
        "tokens": "tokens",
    }
    shown = [name for name in columns if any(row.get(name) is not None for row in rows)]
    table = [[_cell(name, row.get(name)) for name in shown] for row in rows]
    print(tabulate(table, headers=[columns[name] for name in shown], floatfmt=".3f"))
    for row in rows:
        if row.get("served_by"):
            print(f"{row['label']} as served: {row['served_by']}")


def _print_scores(suite: str, rows: list[dict[str, Any]]) -> None:
    """Scores with 95 % intervals; lost, gained and p compare with FP16."""
    from upq.evaluation import scores

    print(f"\nSuite {suite}, 95 % intervals in brackets")
    print(tabulate([scores.readable(suite, row) for row in rows], headers="keys"))


def _cell(name: str, value: Any) -> Any:
    return round(value / 1e6, 1) if name == "size_bytes" and value else value


def write_json(path: str | None, result: dict[str, Any]) -> None:
    if path:
        try:
            Path(path).write_text(json.dumps(result, indent=1), encoding="utf-8")
        except OSError as error:
            raise UserError(
                "not_writable", f"{path} could not be written: {error.strerror}."
            ) from error
