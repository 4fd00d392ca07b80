"""Start UPQ Studio: check the environment, open the store, keep a worker alive, serve the page.

Runs live in the worker process, so closing the browser or this program loses nothing.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import signal
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ui import App
    from ui.public import Place
    from ui.zero_gpu import ZeroGpu
    from upq.jobs import Supervisor

MINIMUM_PYTHON = (3, 10)
#: Seconds between two looks whether to end: a signal that another thread gets does not wake the one that handles it.
LOOK_S = 1.0
NEEDED = ("gradio", "torch", "transformers", "sqlite_utils")


def preflight() -> str:
    """What keeps this program from starting, as one sentence; empty if nothing does."""
    if sys.version_info < MINIMUM_PYTHON:
        return f"Python {sys.version.split()[0]} is too old; UPQ Studio needs 3.10 or newer."
    if any(one.name == "kernels" for one in importlib.metadata.distributions()):
        clash = "The PyPI package `kernels` clashes with this program's folder of the same name"
        return f"{clash}; remove it with `pip uninstall kernels`."
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    return f"Not installed: {', '.join(missing)}; run `make install`." if missing else ""


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="UPQ Studio: FP16, INT4 and INT2 side by side.")
    parser.add_argument("--data-dir", help="folder of the database and checkpoints; else UPQ_HOME")
    parser.add_argument(
        "--host",
        default=os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"),
        help="address to listen on",
    )
    parser.add_argument("--port", type=int, default=7860)
    parser.add_argument("--demo", action="store_true", help="start a quick run if there is none")
    parser.add_argument(
        "--without-shipped",
        action="store_true",
        help="do not add the models that ship with the app",
    )
    parser.add_argument(
        "--public",
        action="store_true",
        help="open to strangers: visitors see their own runs only, within limits; so on a Space",
    )
    parser.add_argument("--auth-file", type=Path, help="file with one name:password a line")
    return parser.parse_args()


def credentials(path: Path | None) -> list[tuple[str, str]] | None:
    """The users in the auth file, None without one."""
    if path is None:
        return None
    lines = path.read_text(encoding="utf-8").splitlines()
    pairs = [
        (name, word) for name, mark, word in (one.strip().partition(":") for one in lines) if mark
    ]
    return pairs or sys.exit(f"{path.name} holds no line like name:password.")


def serve(options: argparse.Namespace) -> None:
    """Open the store, start the worker's supervisor and the page; returns on Ctrl-C or SIGTERM."""
    # Heavy imports, and only sound after the preflight.
    from ui import build, launch  # noqa: PLC0415
    from ui.public import Place  # noqa: PLC0415
    from ui.zero_gpu import zero_gpu  # noqa: PLC0415
    from upq.config import presets  # noqa: PLC0415
    from upq.files import sweep  # noqa: PLC0415
    from upq.jobs import shipped, supervisor  # noqa: PLC0415
    from upq.models import bundled, serving_device  # noqa: PLC0415
    from upq.serve import is_local  # noqa: PLC0415
    from upq.store import data_dir, exports_dir, open_store  # noqa: PLC0415

    folder = data_dir(options.data_dir)
    for place in (folder, exports_dir(folder)):
        sweep(place)
    gpu = zero_gpu(folder)
    bundled.provide(folder)
    store = open_store(folder)
    if options.demo and not store.runs(limit=1):
        store.enqueue(presets.preset("quick"))
    worker = supervisor.Supervisor(store, folder, "cpu" if gpu else serving_device().type)
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    with tempfile.TemporaryDirectory(prefix="upq-studio-") as downloads:
        app = app_of(options, Place(folder, store, Path(downloads)), worker, gpu)
        page = build(app)
        worker.start()
        url = launch(page, options.host, options.port, credentials(options.auth_file), folder)
        app.unpacking = None if options.without_shipped else shipped.start(store, folder)
        print(f"UPQ Studio is at {url}; its data are in {folder}. Ctrl-C ends it.", flush=True)
        if not is_local(options.host) and not (options.auth_file or is_public(options)):
            sentence = "Anyone who reaches this address can use it; see --auth-file and --public."
            print(sentence, file=sys.stderr)
        while not stopped.wait(LOOK_S):
            pass
        page.close(verbose=False)
        app.exports.stop()
        app.ahead.stop()
        worker.stop()
        if app.unpacking:
            app.unpacking.kill()
            app.unpacking.wait()


def is_public(options: argparse.Namespace) -> bool:
    """Whether strangers come: where that was said, and on a Hugging Face Space."""
    return options.public or "SPACE_ID" in os.environ


def app_of(
    options: argparse.Namespace, place: Place, worker: Supervisor, gpu: ZeroGpu | None
) -> App:
    """The app for its owner, or for strangers."""
    from ui import App  # noqa: PLC0415
    from ui.public import Limits, PublicApp  # noqa: PLC0415
    from upq.jobs import Models  # noqa: PLC0415
    from upq.jobs.export_folder import Exports  # noqa: PLC0415
    from upq.serve import is_local  # noqa: PLC0415
    from upq.store import exports_dir  # noqa: PLC0415

    if is_public(options):
        return PublicApp.of(place, worker, Limits.from_environment(), gpu)
    exports = Exports(place.store, exports_dir(place.folder))
    # With this machine's token: only where nobody else reaches the page.
    may_publish = is_local(options.host)
    return App(place.store, Models(place.store), worker, place.downloads, exports, may_publish)


def main() -> None:
    """The program. Every failure to start is one sentence."""
    if problem := preflight():
        sys.exit(problem)
    options = arguments()
    from upq.errors import UserError  # noqa: PLC0415

    try:
        serve(options)
    except (UserError, OSError) as error:
        sys.exit(f"{error} {getattr(error, 'hint', '')}".strip())


if __name__ == "__main__":
    main()
