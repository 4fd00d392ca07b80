"""The flags of every command."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import Any

import upq
from upq.cli import commands, conversations, exports, talking, votes
from upq.config import DEFAULT_METHOD, METHODS, PRECISIONS, PRESET_WORDS, PRESETS, SUITES, TASKS

#: The states that a run may be in; upq.store, which says so as well, takes a second to import.
STATES = ("queued", "running", "done", "failed", "cancelled", "interrupted")


def parser() -> argparse.ArgumentParser:
    """All commands with their flags."""
    whole = argparse.ArgumentParser(
        prog="python -m upq", description="The command line: the same functions that the app calls."
    )
    whole.add_argument("--version", action="version", version=f"UPQ Studio {upq.__version__}")
    whole.add_argument(
        "--data-dir", help="where runs are kept (default: UPQ_HOME, else the user data folder)"
    )
    sub = whole.add_subparsers(required=True, metavar="COMMAND")

    def command(
        name: str, function: Callable[[Any], int | None], text: str
    ) -> argparse.ArgumentParser:
        subparser = sub.add_parser(name, help=text, description=text)
        subparser.set_defaults(command=function)
        subparser.add_argument("--data-dir", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        return subparser

    def of_a_run(
        name: str, function: Callable[[Any], int | None], text: str
    ) -> argparse.ArgumentParser:
        subparser = command(name, function, text)
        subparser.add_argument("run", type=int, metavar="RUN", help="number of the run")
        return subparser

    _add_run_flags(command("run", commands.run, "quantize a model and wait for the result"))
    words = "the main job without a browser: run, chat, checks, table"
    _add_demo_flags(command("demo", commands.demo, words))
    _add_list_flags(command("list", commands.list_runs, "list the runs"))
    words = (
        "show a run: name, note, state, measurements, log; the flags change what is written on it"
    )
    _add_show_flags(of_a_run("show", commands.show, words))
    of_a_run("cancel", commands.cancel, "stop a run; its checkpoint is kept")
    of_a_run("resume", commands.resume, "continue a run behind its last checkpoint")
    _add_chat_flags(of_a_run("chat", talking.chat, "chat with the models of a run"))
    words = "let the models of a run read one answer, token by token"
    _add_compare_flags(of_a_run("compare", talking.compare, words))
    words = "answer other programs as an OpenAI-compatible server"
    _add_serve_flags(of_a_run("serve", talking.serve, words))
    deleting = of_a_run("delete", commands.delete, "delete a run with its models and checks")
    deleting.add_argument("--yes", action="store_true", help="do not ask first")
    words = "run instruction checks or another suite on the models of a run"
    _add_check_flags(of_a_run("check", commands.check, words))
    words = "measure the artifacts of a run: fidelity, WikiText-2, MMLU, IFEval"
    _add_eval_flags(of_a_run("eval", commands.evaluate, words))
    words = "write a model of a run for other programs, or list the formats"
    _add_export_flags(of_a_run("export", exports.export, words))
    words = "export a model of a run and send it to the Hugging Face Hub"
    _add_push_flags(of_a_run("push", exports.push, words))
    words = "write a finished run with its models and checks as one file"
    packing = of_a_run("pack", exports.pack, words)
    packing.add_argument("file", metavar="FILE", help="the file to write, such as out.upq")
    unpacking = command("unpack", exports.unpack, "take in a run that was packed elsewhere")
    unpacking.add_argument("file", metavar="FILE", help="what `pack` wrote")
    words = "list the conversations of the chat, or export or delete one"
    _add_conversation_flags(command("conversations", conversations.conversations, words))
    voting = command("votes", votes.votes, "what the blind votes on a run, or on all runs, say")
    voting.add_argument("run", type=int, nargs="?", metavar="RUN", help="number of the run")
    voting.add_argument("--csv", metavar="FILE", help="write every vote, one a line")
    command("doctor", commands.doctor, "check the data folder and say what is wrong")
    words = "execute queued runs (the app starts this by itself)"
    worker = command("worker", commands.worker, words)
    worker.add_argument("--device", default="cpu")
    worker.add_argument("--once", action="store_true", help="stop when the queue is empty")
    return whole


def _add_json(subparser: argparse.ArgumentParser) -> None:
    subparser.add_argument("--json", metavar="FILE", help="write the result as one JSON object")


def _add_list_flags(subparser: argparse.ArgumentParser) -> None:
    words = "only runs with these words in name, note, model, method, preset or number"
    subparser.add_argument("--search", default="", metavar="TEXT", help=words)
    for part in ("name", "note"):
        words = f"only runs whose {part} has this text"
        subparser.add_argument(f"--{part}", default="", metavar="TEXT", help=words)
    subparser.add_argument("--state", choices=STATES, help="only runs in this state")
    subparser.add_argument("--starred", action="store_true", help="only runs with a star")


def _add_show_flags(subparser: argparse.ArgumentParser) -> None:
    _add_json(subparser)
    for part in ("name", "note"):
        words = f"give the run this {part}; an empty text takes it away"
        subparser.add_argument(f"--{part}", metavar="TEXT", help=words)
    subparser.add_argument(
        "--star", action=argparse.BooleanOptionalAction, help="star the run, or take the star away"
    )


def _add_model(subparser: argparse.ArgumentParser) -> None:
    text = "bundled, a hub id, a folder or a GGUF file"
    subparser.add_argument("--model", default="bundled", help=text)


def _add_precision(subparser: argparse.ArgumentParser) -> None:
    every = ",".join(PRECISIONS)
    subparser.add_argument("--precision", default=every, help="comma-separated list")


def _add_chat_flags(subparser: argparse.ArgumentParser) -> None:
    _add_precision(subparser)
    subparser.add_argument("--system", default="", help="system prompt; empty: the model's own")
    subparser.add_argument("--max-tokens", type=int, default=256, help="longest answer, tokens")
    subparser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy")
    subparser.add_argument("--top-p", type=float, default=1.0, help="1 keeps every token")
    subparser.add_argument("--seed", type=int, default=0, help="seed of the sampling")
    words = "above 1 repeats less; 1 is off"
    subparser.add_argument("--repetition-penalty", type=float, default=1.0, help=words)


def _add_serve_flags(subparser: argparse.ArgumentParser) -> None:
    _add_precision(subparser)
    words = "address to listen on; the default is reached from this machine only"
    subparser.add_argument("--host", default="127.0.0.1", help=words)
    subparser.add_argument("--port", type=commands.count, default=8000)
    words = "what programs have to know (default: UPQ_SERVE_KEY, else nothing)"
    subparser.add_argument("--key", default=os.environ.get("UPQ_SERVE_KEY", ""), help=words)
    words = "the web page that may ask from a browser, such as http://localhost:3000; * is any"
    subparser.add_argument("--cors", metavar="ORIGIN", default="", help=words)


def _add_form(subparser: argparse.ArgumentParser, *, required: bool) -> None:
    words = "INT4 or INT2; may be left out where the run has one of them"
    subparser.add_argument("--precision", metavar="P", help=words)
    words = "key of a format, as `export RUN --list` shows them"
    subparser.add_argument("--format", metavar="F", required=required, help=words)


def _add_export_flags(subparser: argparse.ArgumentParser) -> None:
    _add_form(subparser, required=False)
    words = "folder to write, absent or empty (default: ./NAME-PRECISION-FORMAT)"
    subparser.add_argument("--out", metavar="DIR", help=words)
    words = "show what each format would make of the run, and write nothing"
    subparser.add_argument("--list", action="store_true", help=words)
    _add_json(subparser)


def _add_push_flags(subparser: argparse.ArgumentParser) -> None:
    _add_form(subparser, required=True)
    words = "the model on the hub; it is made where there is none"
    subparser.add_argument("--repo", required=True, metavar="OWNER/NAME", help=words)
    words = "a model that is made now is private"
    subparser.add_argument("--private", action="store_true", help=words)
    words = "write what would be sent into a folder, and send nothing"
    subparser.add_argument("--dry-run", metavar="DIR", help=words)


def _add_conversation_flags(subparser: argparse.ArgumentParser) -> None:
    words = "list only those whose title, questions or answers hold this"
    subparser.add_argument("--search", default="", metavar="TEXT", help=words)
    words = "write a conversation as FILE.md, FILE.jsonl or FILE.html"
    subparser.add_argument("--export", nargs=2, metavar=("FILE", "NUMBER"), help=words)
    words = "delete a conversation, after a question"
    subparser.add_argument("--delete", type=int, metavar="NUMBER", help=words)
    subparser.add_argument("--yes", action="store_true", help="delete without a question")


def _add_run_flags(subparser: argparse.ArgumentParser) -> None:
    _add_model(subparser)
    subparser.add_argument("--method", default=DEFAULT_METHOD, choices=METHODS)
    words = "; ".join(f"{name}: {meaning}" for name, meaning in PRESET_WORDS.items())
    subparser.add_argument("--preset", default="quick", choices=PRESETS, help=words)
    subparser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change one setting"
    )
    subparser.add_argument(
        "--processes",
        type=commands.count,
        default=1,
        help="processes that distill together (accelerate)",
    )
    subparser.add_argument("--name", default="", metavar="TEXT", help="what to call the run")
    subparser.add_argument("--note", default="", metavar="TEXT", help="what to remember of it")
    subparser.add_argument(
        "--help-settings", action="store_true", help="list every setting and stop"
    )
    _add_json(subparser)


def _add_demo_flags(subparser: argparse.ArgumentParser) -> None:
    subparser.add_argument("--preset", default="quick", choices=("smoke", "quick"))
    _add_model(subparser)
    _add_json(subparser)


def _add_compare_flags(subparser: argparse.ArgumentParser) -> None:
    _add_precision(subparser)
    _add_json(subparser)
    subparser.add_argument("--prompt", required=True, metavar="TEXT", help="what the user says")
    subparser.add_argument(
        "--system", default="", metavar="TEXT", help="system prompt; default: the model's own"
    )
    subparser.add_argument(
        "--answer-of", default="FP16", choices=PRECISIONS, help="whose answer all of them read"
    )
    subparser.add_argument("--max-tokens", type=int, default=256, help="longest answer, tokens")
    subparser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy")
    subparser.add_argument("--seed", type=commands.count, default=0, help="seed of the sampling")


def _add_check_flags(subparser: argparse.ArgumentParser) -> None:
    _add_precision(subparser)
    _add_json(subparser)
    _add_suite_flags(subparser)
    subparser.add_argument("--suite", default="builtin", choices=SUITES)
    subparser.add_argument("--path", help="local file of the suite; default: from the hub")
    subparser.add_argument("--max-tokens", type=int, default=256, help="longest answer, tokens")


def _add_suite_flags(subparser: argparse.ArgumentParser) -> None:
    subparser.add_argument(
        "--limit", type=commands.count, default=0, help="first N prompts or chunks only; 0: all"
    )
    subparser.add_argument(
        "--per-subject",
        type=commands.count,
        default=0,
        help="MMLU: N questions of a subject; 0: all",
    )
    subparser.add_argument(
        "--seed", type=commands.count, default=0, help="draws the questions of MMLU"
    )


def _add_eval_flags(subparser: argparse.ArgumentParser) -> None:
    _add_precision(subparser)
    _add_json(subparser)
    _add_suite_flags(subparser)
    subparser.add_argument(
        "--tasks", default="fidelity", help=f"comma-separated: {', '.join(TASKS)}"
    )
    subparser.add_argument(
        "--data",
        metavar="FOLDER",
        help="local copies of the suites (default: UPQ_DATA, else the hub)",
    )
    subparser.add_argument(
        "--max-tokens", type=int, default=1280, help="longest answer of IFEval, tokens"
    )
    subparser.add_argument(
        "--text", metavar="FILE", help="also measure perplexity on this text file"
    )
    subparser.add_argument("--tokens", type=int, default=16_384, help="tokens of the text to use")
