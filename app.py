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

MINIMUM_PYTHON = (3, 10)
LOOPBACK = ("127.0.0.1", "localhost", "::1")
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
    from ui import App, build, launch  # noqa: PLC0415
    from upq.config import presets  # noqa: PLC0415
    from upq.jobs import export_folder, served, shipped, supervisor  # noqa: PLC0415
    from upq.models import bundled  # noqa: PLC0415
    from upq.store import data_dir, exports_dir, open_store  # noqa: PLC0415

    folder = data_dir(options.data_dir)
    bundled.provide(folder)
    store = open_store(folder)
    if options.demo and not store.runs(limit=1):
        store.enqueue(presets.preset("quick"))
    models = served.Models(store)
    worker = supervisor.Supervisor(store, folder, models.device.type)
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    exports = export_folder.Exports(store, exports_dir(folder))
    with tempfile.TemporaryDirectory(prefix="upq-studio-") as downloads:
        app = App(store, models, worker, Path(downloads), exports)
        page = build(app)
        worker.start()
        url = launch(page, options.host, options.port, credentials(options.auth_file), folder)
        app.unpacking = None if options.without_shipped else shipped.start(store, folder)
        print(f"UPQ Studio is at {url}; its data are in {folder}. Ctrl-C ends it.", flush=True)
        if options.host not in LOOPBACK and not options.auth_file:
            print("Anyone who reaches this address can use it; see --auth-file.", file=sys.stderr)
        stopped.wait()
        page.close(verbose=False)
        exports.stop()
        app.ahead.stop()
        worker.stop()
        if app.unpacking:
            app.unpacking.kill()
            app.unpacking.wait()


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
