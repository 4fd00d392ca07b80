"""The command line: the same functions that the app calls.

python -m upq run --model bundled --method upq --preset quick --set int2.distill.beta=0.5
python -m upq demo --preset smoke --json demo.json
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tabulate import tabulate

from upq import check_report, commands, eval_command
from upq.check_run import SUITES, check_config
from upq.config import METHODS, PRESETS, RunConfig, settings, with_settings
from upq.errors import Cancelled, Interrupted, UserError
from upq.jobs import data_dir, open_store
from upq.presets import DEFAULT_METHOD, preset
from upq.worker import worker_main


def main(arguments: list[str] | None = None) -> int:
    """Parse and run one command; returns the exit code. A UserError becomes one sentence on stderr."""
    options = _parser().parse_args(arguments)
    try:
        return options.command(options) or 0
    except UserError as error:
        print(f"{error.message} {error.hint}".strip(), file=sys.stderr)
        return 2
    except (KeyboardInterrupt, Cancelled, Interrupted):
        print(
            "Stopped. A run that was going on is kept; `python -m upq list` shows it.",
            file=sys.stderr,
        )
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m upq", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument(
        "--data-dir", help="where runs are kept (default: UPQ_HOME, else the user data folder)"
    )
    sub = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(
        name: str, function: Callable[[Any], int | None], text: str
    ) -> argparse.ArgumentParser:
        one = sub.add_parser(name, help=text, description=text)
        one.set_defaults(command=function)
        one.add_argument("--data-dir", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        return one

    run = command("run", _run, "quantize a model and wait for the result")
    run.add_argument(
        "--model", default="bundled", help="bundled, a hub id, a folder or a GGUF file"
    )
    run.add_argument("--method", default=DEFAULT_METHOD, choices=METHODS)
    run.add_argument("--preset", default="quick", choices=PRESETS)
    run.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change one setting"
    )
    run.add_argument(
        "--processes", type=_count, default=1, help="processes that distill together (accelerate)"
    )
    run.add_argument("--help-settings", action="store_true", help="list every setting and stop")
    demo = command("demo", _demo, "the main job without a browser: run, chat, checks, table")
    demo.add_argument("--preset", default="quick", choices=("smoke", "quick"))
    demo.add_argument(
        "--model", default="bundled", help="bundled, a hub id, a folder or a GGUF file"
    )
    command("list", _list, "list the runs")
    for name, function, text in (
        ("show", _show, "show a run: settings, state, measurements"),
        ("cancel", _cancel, "stop a run; its checkpoint is kept"),
        ("resume", _resume, "continue a run behind its last checkpoint"),
        ("chat", _chat, "chat with the models of a run"),
        ("check", _check, "run instruction checks or another suite on the models of a run"),
        ("eval", _eval, "measure the artifacts of a run: fidelity, WikiText-2, MMLU, IFEval"),
    ):
        one = command(name, function, text)
        one.add_argument("run", type=int, metavar="RUN", help="number of the run")
        if name in ("chat", "check", "eval"):
            one.add_argument("--precision", default="FP16,INT4,INT2", help="comma-separated list")
        if name in ("check", "eval", "show"):
            one.add_argument("--json", metavar="FILE", help="write the result as one JSON object")
        if name in ("check", "eval"):
            _add_suite_flags(one)
        if name == "check":
            one.add_argument("--suite", default="builtin", choices=SUITES)
            one.add_argument("--path", help="local file of the suite; default: from the hub")
            one.add_argument("--max-tokens", type=int, default=256, help="longest answer, tokens")
        if name == "eval":
            _add_eval_flags(one)
    for one in (run, demo):
        one.add_argument("--json", metavar="FILE", help="write the result as one JSON object")
    command("doctor", _doctor, "check the data folder and say what is wrong")
    worker = command("worker", _worker, "execute queued runs (the app starts this by itself)")
    worker.add_argument("--device", default="cpu")
    worker.add_argument("--once", action="store_true", help="stop when the queue is empty")
    return parser


def _add_suite_flags(one: argparse.ArgumentParser) -> None:
    one.add_argument(
        "--limit", type=_count, default=0, help="first N prompts or chunks only; 0: all"
    )
    one.add_argument(
        "--per-subject", type=_count, default=0, help="MMLU: N questions of a subject; 0: all"
    )
    one.add_argument("--seed", type=_count, default=0, help="draws the questions of MMLU")


def _add_eval_flags(one: argparse.ArgumentParser) -> None:
    one.add_argument(
        "--tasks", default="fidelity", help="comma-separated: fidelity, wikitext2, mmlu, ifeval"
    )
    one.add_argument(
        "--data",
        metavar="FOLDER",
        help="local copies of the suites (default: UPQ_DATA, else the hub)",
    )
    one.add_argument(
        "--max-tokens", type=int, default=1280, help="longest answer of IFEval, tokens"
    )
    one.add_argument("--text", metavar="FILE", help="also measure perplexity on this text file")
    one.add_argument("--tokens", type=int, default=16_384, help="tokens of the text to use")


def _run(options: Any) -> int | None:
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
    config = _config(options)
    commands.vet(config)
    folder = data_dir(options.data_dir)
    run = commands.run_and_wait(
        folder, lambda store: store.enqueue(config), print, options.processes
    )
    result = commands.summary(open_store(folder), run.id)
    _print_table(result["artifacts"] + result["baselines"])
    _write(options.json, result)
    return 0 if run.state == "done" else 1


def _config(options: Any) -> RunConfig:
    """The config that the flags of `run` describe."""
    for pair in options.set:
        if "=" not in pair:
            raise UserError("bad_config", f"--set {pair} has no equals sign; expected KEY=VALUE.")
    changes = dict(pair.split("=", 1) for pair in options.set)
    start = preset(options.preset, options.method)
    return with_settings(start, {"model.source": options.model} | changes)


def _demo(options: Any) -> int | None:
    result = commands.demo(data_dir(options.data_dir), options.model, options.preset, print)
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


def _list(options: Any) -> None:
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


def _show(options: Any) -> None:
    store = open_store(data_dir(options.data_dir))
    run = store.run(options.run)
    print(
        f"run {run.id}: {run.kind} {run.method} {run.preset} on {run.model}, {run.state} {run.error_message}"
    )
    if run.error_hint:
        print(run.error_hint)
    result = commands.summary(store, run.id)
    _print_table(result["artifacts"] + result["baselines"])
    for _, line in store.log_lines(run.id):
        print(f"  {line}")
    _write(options.json, result)


def _cancel(options: Any) -> None:
    print(open_store(data_dir(options.data_dir)).request_cancel(options.run))


def _resume(options: Any) -> int:
    folder = data_dir(options.data_dir)

    def resume(store: Any) -> int:
        print(store.resume(options.run))
        return options.run

    return 0 if commands.run_and_wait(folder, resume, print).state == "done" else 1


def _chat(options: Any) -> None:
    store = open_store(data_dir(options.data_dir))
    commands.chat(store, options.run, _precisions(options.precision))


def _check(options: Any) -> int:
    folder = data_dir(options.data_dir)
    precisions = _precisions(options.precision)
    model = open_store(folder).run(options.run).model
    path = str(Path(options.path).absolute()) if options.path else None
    values = {"max_tokens": options.max_tokens, "path": path, **_suite_options(options)}
    config = check_config(options.suite, precisions, options.run, model, **values)
    run, rows = commands.check(folder, options.run, config, print)
    _print_scores(options.suite, rows)
    _write(options.json, {"run": options.run, "checks": rows})
    return 0 if run.state == "done" else 1


def _eval(options: Any) -> None:
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


def _doctor(options: Any) -> int:
    problems = open_store(data_dir(options.data_dir)).doctor()
    print("\n".join(problems) or "The data folder is in order.")
    return 1 if problems else 0


def _worker(options: Any) -> None:
    worker_main(data_dir(options.data_dir), options.device, once=options.once)


def _count(text: str) -> int:
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
    print(tabulate([check_report.readable(suite, row) for row in rows], headers="keys"))


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


if __name__ == "__main__":
    sys.exit(main())
