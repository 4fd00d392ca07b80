"""The Export tab: formats with what each makes of the model, the files that were made, and commands to copy."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ui.html import METHOD_NAMES, Html, join, notice, number, percent, plural, size, table, tag
from upq.jobs.background import Work
from upq.jobs.export_folder import Kept, Sending

#: A route of Gradio; relative, so that it holds behind any address.
FILE_ROUTE = "gradio_api/file="
#: The method whose models other programs hold.
PORTABLE = METHOD_NAMES["portable_upq"]
HEAD = ("Format", "Runs in", "Size", "Bits/weight", "Weights", "")


@dataclass(frozen=True)
class Line:
    """A format and how far it is. row: as upq.jobs.exports.offers gives it."""

    row: Mapping[str, Any]
    kept: Kept | None = None
    work: Work | None = None

    @property
    def is_busy(self) -> bool:
        """Whether its files are being made."""
        return self.work is not None and self.work.is_busy


@dataclass(frozen=True)
class Place:
    """A model of a run in a data folder."""

    data_dir: Path
    run_id: int
    precision: str


def reading() -> Html:
    """Say that the formats are still to come."""
    return notice("busy", "Reading the model, to say what each format makes of it.")


def nothing(is_fp16: bool) -> Html:
    """Say why there is nothing to export."""
    if is_fp16:
        return notice(
            "empty",
            "This is FP16 alone, as it came; there is nothing to export.",
            "Choose a run at the top of the page.",
        )
    return notice(
        "empty",
        "Nothing to export yet.",
        "Start a run on the Quantize tab; its INT4 and INT2 leave from here.",
    )


def about(run: str, absent: Sequence[str], state: str) -> Html:
    """Say what is exported, and which models the run has not left."""
    what = tag(
        "p",
        tag("b", run),
        ". Files are written, read back and compared with the run's own weights before they appear.",
        class_="hint",
    )
    if not absent:
        return what
    later = state in ("queued", "running", "interrupted")
    words = "is not there yet" if later else "was not made"
    sentence = f"{' and '.join(absent)} {words}: the run is {state}."
    return join([what, notice("busy" if later else "empty", sentence)])


def formats(lines: Sequence[Line], is_portable: bool) -> Html:
    """Draw a row for each format that can hold the model, and a sentence for each that cannot.

    is_portable: the model is of the method that keeps to other programs' formats.
    """
    able = [line for line in lines if "why_not" not in line.row]
    unable = [line.row for line in lines if "why_not" in line.row]
    rows = [_row(line) for line in able]
    parts = [table(HEAD, rows, numeric=(2, 3), class_="formats")] if rows else []
    parts += [_failure(line) for line in able if line.work and line.work.failure and not line.kept]
    return join([*parts, _refusals(unable, is_portable)])


def _row(line: Line) -> list[Html | str]:
    row = line.row
    return [
        join([tag("b", row["title"]), " ", tag("small", row["key"])]),
        _with_code(row["runs_in"]),
        size(row["size_bytes"]),
        number(row["bits_per_weight"]),
        _with_code(row["exactness"]),
        _action(line),
    ]


def _action(line: Line) -> Html:
    key = line.row["key"]
    if line.is_busy and line.work:
        share = line.work.share
        words = "waits for another export" if share is None else percent(share, 0)
        bar = tag("progress", value=share or 0, max=1)
        stop = tag("button", "Cancel", class_="small", data_action="cancel", data_format=key)
        return tag("div", tag("small", words), bar, stop, class_="making")
    if line.kept:
        return tag("span", "✓ made", class_="state done")
    return tag("button", "Make files", class_="small make", data_action="make", data_format=key)


def _failure(line: Line) -> Html:
    failure = line.work.failure if line.work else None
    if failure is None:
        return Html()
    return notice("failed", f"{line.row['title']}: {failure.message}", failure.hint)


def _refusals(rows: Sequence[Mapping[str, Any]], is_portable: bool) -> Html:
    if not rows:
        return Html()
    lines = [tag("li", tag("b", row["title"]), " ", _with_code(row["why_not"])) for row in rows]
    way = f"The method {PORTABLE}, on the Quantize tab, is made for other programs: no rotation, llama.cpp's own forms."
    return tag(
        "div",
        tag("h3", "Cannot hold this model", class_="section"),
        tag("ul", *lines),
        None if is_portable else tag("p", way, class_="hint"),
        class_="refusals",
    )


def files(lines: Sequence[Line]) -> Html:
    """Draw the files of each format that were made: where they are, what they are, and how programs take them."""
    return tag(
        "div", *(_made(line.row, line.kept) for line in lines if line.kept), class_="made-exports"
    )


def _made(row: Mapping[str, Any], kept: Kept) -> Html:
    title = f"{row['title']}: {plural(len(kept.files), 'file')}, {size(kept.size_bytes)}"
    uses = [join([tag("h3", use.program), copied(use.command)]) for use in kept.uses]
    remove = tag(
        "button", "Delete files", class_="small", data_action="delete", data_format=row["key"]
    )
    return tag(
        "section",
        tag("h2", title),
        notice("done", f"{kept.found[:1].upper()}{kept.found[1:]}.") if kept.found else None,
        tag("h3", "Folder"),
        copied(str(kept.folder)),
        tag("ul", *(_file(kept.folder, file) for file in kept.files), class_="made-files"),
        tag("p", "In that folder:", class_="hint") if uses else None,
        *uses,
        remove,
        class_="card",
    )


def _file(folder: Path, file: Path) -> Html:
    name = file.relative_to(folder).as_posix()
    link = tag("a", name, href=FILE_ROUTE + quote(str(file)), download=file.name)
    return tag("li", link, " ", tag("small", size(file.stat().st_size)))


def copied(text: str) -> Html:
    """Draw a text with a button that copies it."""
    button = tag("button", "Copy", class_="small", data_copy=True)
    return tag("div", tag("pre", text, class_="command"), button, class_="copied")


def publishing_hint(may_publish: bool, signs_in: bool) -> Html:
    """Say what a publication is and who may send one. signs_in: whoever is on the page, with an account of theirs."""
    if signs_in:
        words = (
            "Sign in to send files and model card to your account on the Hugging Face Hub. This app keeps no token:"
            " your browser does, for some hours or until you sign out."
        )
        return tag("p", words, class_="hint")
    log_in = (
        "Log in once with ",
        tag("code", "hf auth login"),
        " on this machine, or set HF_TOKEN.",
    )
    if may_publish:
        words = "Sends files and model card to your account on the Hugging Face Hub. "
    else:
        words = "Others can reach this page, so it does not use this machine's token: publish from the command line. "
    return tag("p", words, *log_in, class_="hint")


def whole_run_hint() -> Html:
    """Say what a run as one file is for."""
    return tag(
        "p", "Models, curves, log and checks, for UPQ Studio on another machine.", class_="hint"
    )


def publishing(
    place: Place | None, key: str, works: Mapping[Sending, Work], lines: Sequence[Line]
) -> Html:
    """Draw where a model was sent, what is on its way, what failed, and the command that does the same.

    place: None for those who can type no commands. key: of the format that the command names.
    """
    sent = [
        notice("done", join([f"{line.row['title']} is at ", tag("b", address), "."]))
        for line in lines
        for address in (line.kept.sent if line.kept else ())
    ]
    sendings = [_sending(sending, work) for sending, work in works.items()]
    return tag("div", *sendings, *sent, place and _push_command(place, key))


def _push_command(place: Place, key: str) -> Html:
    upq = ["python", "-m", "upq", "--data-dir", str(place.data_dir)]
    command = ["push", str(place.run_id), "--precision", place.precision, "--format", key]
    line = shlex.join([*upq, *command, "--repo", "OWNER/NAME"])
    return folded("The same from the command line", copied(line))


def _sending(sending: Sending, work: Work) -> Html:
    if work.failure:
        return notice("failed", f"{sending.repo}: {work.failure.message}", work.failure.hint)
    if work.share is None:
        words = "waits for other work."
    elif work.share < 1:
        words = f"its files are made first, {percent(work.share, 0)}."
    else:
        words = "its files are being sent."
    return notice("busy", f"{sending.repo}: {words}", "The page may be closed meanwhile.")


def whole_run(place: Place, is_done: bool, file: Path | None, work: Work | None) -> Html:
    """Draw a whole run as one file: how to make it, how far it is, or where it is and how it is taken in.

    is_done: whether the run is.
    """
    upq = ["python", "-m", "upq"]
    if not is_done:
        return notice("empty", "A run can be packed when it is done.")
    if work and work.is_busy:
        return notice(
            "busy",
            "The run is being packed." if work.share is not None else "Waits for other work.",
        )
    failed = (
        notice("failed", work.failure.message, work.failure.hint) if work and work.failure else None
    )
    pack = tag("button", "Pack the run", class_="small make", data_action="pack")
    if file is None:
        command = [
            *upq,
            "--data-dir",
            str(place.data_dir),
            "pack",
            str(place.run_id),
            f"run-{place.run_id}.upq",
        ]
        return tag(
            "div",
            failed,
            pack,
            folded("The same from the command line", copied(shlex.join(command))),
        )
    remove = tag("button", "Delete file", class_="small", data_action="delete-file")
    return tag(
        "div",
        tag("ul", _file(file.parent, file), class_="made-files"),
        tag("p", "On the other machine:", class_="hint"),
        copied(shlex.join([*upq, "unpack", file.name])),
        remove,
    )


def folded(title: str, body: Html) -> Html:
    """Draw something that opens at a click on its title."""
    return tag("details", tag("summary", title), body, class_="folded")


def _with_code(text: str) -> Html:
    """A text in which words between backquotes are code."""
    pieces = text.split("`")
    return join(tag("code", piece) if place % 2 else piece for place, piece in enumerate(pieces))
