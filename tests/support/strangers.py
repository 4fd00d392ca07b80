"""An app that is open to strangers, served from the tests' own process, and visitors with browsers of their own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.support.grids import GRIDS
from tests.ui.open_app import HANG_S, OpenApp
from tests.ui.studio import free_port
from ui import build, launch
from ui.public import Limits, PublicApp
from ui.public import Place as Folders
from upq.artifact import assembly
from upq.config import RunConfig
from upq.jobs import Supervisor
from upq.models import LoadedModel, plan_layers
from upq.store import Store, open_store

#: What stands in the run of a visitor and nobody else may read.
SECRET_LINE, SECRET_ANSWER = "the secret line of a log", "the secret answer of a check"
#: Accounts of an app that asks for a name and a password.
PASSWORDS = {"ada": "of ada", "bob": "of bob"}


@dataclass(frozen=True)
class Place:
    """The app: its address, its store as the owner sees it, and its folder."""

    app: PublicApp
    url: str
    house: Store
    folder: Path
    model: str

    @contextmanager
    def visitor(self, user: str = "") -> Iterator[OpenApp]:
        """Somebody with a browser that keeps cookies, on the page; user: the name of one of PASSWORDS' accounts."""
        with httpx.Client(base_url=self.url, timeout=HANG_S) as client:
            if user:
                signed_in = client.post(
                    "login", data={"username": user, "password": PASSWORDS[user]}
                )
                assert signed_in.status_code == httpx.codes.OK
            client.get("")
            yield OpenApp(self.app, client, self.house, 0, self.folder)  # type: ignore[arg-type]

    def finish(self, loaded: LoadedModel) -> int:
        """Do the run that waits, as a worker does, and leave both artifacts; return its id."""
        run = self.house.claim("cpu@here:1", 1, 60.0)
        assert run is not None
        lease = self.house.lease(run)
        lease.log([(1.0, SECRET_LINE)])
        for name, grid in GRIDS.items():
            packed = {}
            for layer in plan_layers(loaded.model, 32):
                weight = loaded.model.get_parameter(f"{layer.name}.weight")
                packed[layer.name] = grid.pack(weight, *grid.fit(weight, 32))
            config = RunConfig.from_values(run.config)
            lease.save_artifact(assembly.build(name, packed, loaded, config))
        lease.finish("done")
        return run.id


@contextmanager
def open_to_strangers(
    folder: Path, model: str, *, with_passwords: bool = False, **limits: Any
) -> Iterator[Place]:
    """Serve the app without a worker. limits: fields of Limits; visitors may quantize the model.

    with_passwords: only those of PASSWORDS get in.
    """
    house = open_store(folder)
    downloads = folder / "downloads"
    downloads.mkdir()
    chosen = Limits(models=("bundled", model), **limits)
    app = PublicApp.of(Folders(folder, house, downloads), Supervisor(house, folder), chosen)
    page = build(app)
    accounts = list(PASSWORDS.items()) if with_passwords else None
    url = launch(page, "127.0.0.1", free_port(), accounts, folder)
    try:
        yield Place(app, url, house, folder, model)
    finally:
        page.close(verbose=False)
        app.store.close()
        house.close()


def events(visitor: OpenApp, session: str, asked: list[dict[str, Any]]) -> list[Any]:
    """Send events of the page in one session, one after the other; what came of each that was taken."""
    found = []
    for body in asked:
        joined = visitor.post("queue/join", body | {"session_hash": session})
        if joined.status_code != httpx.codes.OK:
            continue
        route = f"gradio_api/queue/data?session_hash={session}"
        with visitor.client.stream("GET", route) as lines:
            for line in lines.iter_lines():
                message = json.loads(line.removeprefix("data: ")) if line else {}
                if message.get("msg") in ("process_generating", "process_completed"):
                    found.append(message.get("output"))
    return found
