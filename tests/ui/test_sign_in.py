"""On a Space visitors sign in with the hub and publish with tokens of their own, through Gradio's own flow of OAuth.

The hub and its provider of OpenID are stand-ins on this machine. Needs gradio[oauth].
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import httpx
import pytest
from gradio import oauth

from tests.support import openid
from tests.support.hub import Hub, in_place_of_the_hub
from tests.support.openid import Provider
from tests.support.strangers import Place, events, open_to_strangers
from tests.ui.open_app import HANG_S, OpenApp
from tests.unit.jobs.test_served import stored_run
from ui.api import ENDPOINTS
from ui.public import sign_in
from upq.jobs.export_folder import Wanted
from upq.models import load

pytest.importorskip("authlib", reason="gradio[oauth] is not installed")
pytest.importorskip("itsdangerous", reason="gradio[oauth] is not installed")

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

#: The token of the visitor; that of the machine's owner must never be used.
TOKEN, OWNERS = "hf_oauth_of_the_visitor", "hf_of_the_owner"
DENSE = "safetensors"
WAIT_S = 60


@dataclass(frozen=True)
class Scene:
    """A Space with a run of the house, the hub, and who signs people in."""

    place: Place
    hub: Hub
    provider: Provider
    of_all: int


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("space")
    with (
        pytest.MonkeyPatch.context() as patch,
        openid.running(TOKEN) as provider,
        in_place_of_the_hub(patch, TOKEN) as hub,
    ):
        patch.setenv("HF_TOKEN", OWNERS)
        values = {
            "OAUTH_CLIENT_ID": openid.CLIENT,
            "OAUTH_CLIENT_SECRET": openid.SECRET,
            "OAUTH_SCOPES": openid.SCOPES,
            "OPENID_PROVIDER_URL": provider.address,
        }
        for name, value in values.items():
            patch.setenv(name, value)
            patch.setattr(oauth, name, value)
        patch.setenv("SYSTEM", "spaces")
        patch.setenv("SPACE_ID", "me/space")
        patch.setenv("AUTHLIB_INSECURE_TRANSPORT", "1")
        with open_to_strangers(folder, str(tiny_model_dir)) as place:
            run_id = stored_run(place.house, load(str(tiny_model_dir)), tiny_model_dir)
            yield Scene(place, hub, provider, run_id)


class Browser:
    """A browser that keeps cookies, also those for TLS alone, and follows where it is sent."""

    def __init__(self, place: Place) -> None:
        self.client = httpx.Client(base_url=place.url, timeout=HANG_S)
        self.cookies: dict[str, str] = {}
        self.get("")
        self.open = OpenApp(place.app, self.client, place.house, 0, place.folder)  # type: ignore[arg-type]

    def get(self, address: str) -> httpx.Response:
        address = urljoin(str(self.client.base_url), address)
        answer = self.client.get(address, headers=self._headers())
        for line in answer.headers.get_list("set-cookie"):
            for name, morsel in SimpleCookie(line).items():
                self.cookies.pop(name, None)
                if morsel.value and morsel["max-age"] != "0":
                    self.cookies[name] = morsel.value
        self.client.headers.update(self._headers())
        if answer.is_redirect:
            return self.get(urljoin(address, answer.headers["location"]))
        return answer

    def _headers(self) -> dict[str, str]:
        return {"cookie": "; ".join(f"{name}={value}" for name, value in self.cookies.items())}

    def sign_in(self, looked_at: str = "") -> str:
        """Sign in as Gradio's button does on a page with these parameters; the parameters of where that ends."""
        answer = self.get(f"login/huggingface?_target_url=/{looked_at}")
        assert answer.status_code == httpx.codes.OK
        return answer.url.query.decode()

    def publish(self, repo: str) -> str:
        """What the page gets when the newest run is published."""
        send = self._events(lambda event: [self._component("publish"), "click"] in event["targets"])
        return self._on_the_tab(send, [None, None, None, repo, DENSE, True])

    def shown(self) -> str:
        """What the tab shows of the newest run."""
        published = self._component("published")
        show = self._events(
            lambda event: published in event["outputs"] and len(event["inputs"]) == 3
        )
        return self._on_the_tab(show, [None, None, None])

    def _on_the_tab(self, number: int, values: list[Any]) -> str:
        """What the last event gives after the page was opened and its Export tab chosen, all in one session."""
        selector = self._component("run-selector")
        choose = self._events(
            lambda event: event["outputs"][1:] == [selector] and len(event["inputs"]) == 1
        )
        [tab] = [
            one["id"] for one in self.config["components"] if one["props"].get("id") == "export"
        ]
        select = self._events(lambda event: event["targets"] == [[tab, "select"]])
        asked = [
            {"data": [None], "fn_index": choose},
            {"data": [], "fn_index": select},
            {"data": values, "fn_index": number},
        ]
        return json.dumps(events(self.open, f"s{time.time_ns()}", asked)[-1])

    @property
    def config(self) -> Any:
        return self.client.get("config").json()

    def _component(self, name: str) -> int:
        [found] = [
            one["id"] for one in self.config["components"] if one["props"].get("elem_id") == name
        ]
        return found

    def _events(self, fits: Callable[[dict[str, Any]], bool]) -> int:
        """The first event of the page that fits."""
        return next(
            event["id"]
            for event in self.config["dependencies"]
            if event["backend_fn"] and fits(event)
        )

    def started(self, place: Place) -> int:
        asked = {"model": place.model, "method": "rtn", "preset": "smoke"}
        answer = self.open.call("start_run", asked, by_name=True)
        assert answer.refusal is None
        return answer.results[0]["run_id"]

    def listed(self) -> list[int]:
        return [run["id"] for run in self.open.call("list_runs", {"data": []}).results[0]]


@contextmanager
def browser(scene: Scene, account: tuple[str, str] | None = None) -> Iterator[Browser]:
    found = Browser(scene.place)
    if account:
        scene.provider.account = account
        found.sign_in()
    yield found
    found.client.close()


def sent(place: Place) -> None:
    """Wait until nothing is on its way to the hub."""
    exports: Any = place.app.exports
    deadline = time.monotonic() + WAIT_S
    while any(exports._is_at_work(key) for key in list(exports._begun)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_visitor_signs_in_and_publishes_to_their_own_account(
    scene: Scene, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    wanted = Wanted(scene.of_all, "INT4", DENSE)
    with browser(scene, ("42", "me")) as ada, browser(scene) as bob:
        assert scene.provider.asked == [openid.SCOPES]
        said = ada.publish("me/tiny")
        assert "failed" not in said
        sent(scene.place)
        files = scene.hub.models["me/tiny"]
        assert {"README.md", "config.json", "model.safetensors"} <= files.keys()
        assert scene.hub.private == {"me/tiny": True}
        seen = [one.shown() for one in (ada, bob)]
        assert "me/tiny" in seen[0]
        assert "me/tiny" not in seen[1], "where a model went is its sender's business"
        assert "OWNER/NAME" not in seen[0], "visitors type no commands"
        told = ada.open.call("make_export", asked(wanted), by_name=True)
        assert told.refusal is None
        texts = [said, *seen, json.dumps(told.results), ada.get("").text, ada.get("config").text]
        out, err = capfd.readouterr()
        for text in (*texts, out, err, caplog.text):
            assert TOKEN not in text
    kept = [path for path in scene.place.folder.rglob("*") if path.is_file()]
    assert any(path.name == "upq.db" for path in kept)
    for path in kept:
        assert TOKEN.encode() not in path.read_bytes(), f"{path} holds the token"


def asked(wanted: Wanted) -> dict[str, Any]:
    return {"run_id": wanted.run_id, "precision": wanted.precision, "format": wanted.format}


def test_without_signing_in_nothing_is_sent_also_not_with_the_token_of_the_owner(
    scene: Scene,
) -> None:
    calls = len(scene.hub.calls)
    with browser(scene) as bob:
        assert "Nobody is signed in" in bob.publish("me/stolen")
        bob.client.headers["cookie"] += "; session=eyJvYXV0aF9pbmZvIjoge319.forged"
        assert "Nobody is signed in" in bob.publish("me/stolen")
    with browser(scene, ("42", "me")) as ada:
        ada.get("logout")
        assert "Nobody is signed in" in ada.publish("me/stolen")
    assert len(scene.hub.calls) == calls
    assert "me/stolen" not in scene.hub.models


def test_whoever_signs_in_comes_back_to_the_run_that_they_looked_at(scene: Scene) -> None:
    looked_at = "tab=export&run=3&message=50%25+%26+more%3F"
    with browser(scene) as ada:
        assert ada.sign_in(f"?{looked_at}") == looked_at
        assert ada.get(f"logout?_target_url=/?{looked_at}").url.query.decode() == looked_at
        assert ada.sign_in() == ""


def test_signing_in_adds_no_endpoint(scene: Scene) -> None:
    with browser(scene) as bob:
        listed = bob.client.get("gradio_api/info").json()["named_endpoints"]
    assert {name.removeprefix("/") for name in listed} == ENDPOINTS.keys()


def test_the_hub_decides_whose_account_it_is(scene: Scene) -> None:
    with browser(scene, ("42", "me")) as ada:
        ada.publish("somebody/tiny")
        sent(scene.place)
        assert "somebody/tiny refused the upload" in ada.shown()
        assert "somebody/tiny" not in scene.hub.models


def test_who_signs_in_takes_their_runs_along_and_finds_them_in_another_browser(
    scene: Scene,
) -> None:
    with browser(scene) as first, browser(scene) as other:
        run_id = first.started(scene.place)
        assert run_id in first.listed()
        assert run_id not in other.listed()
        scene.provider.account = ("7", "carol")
        first.sign_in()
        assert run_id in first.listed()
        other.sign_in()
        assert run_id in other.listed()
        other.get("logout")
        assert run_id not in other.listed()
        with browser(scene, ("42", "me")) as ada:
            assert run_id not in ada.listed()


def test_sign_in_is_not_offered_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in sign_in.NEEDED:
        monkeypatch.setenv(name, "x")
    monkeypatch.delenv("SYSTEM", raising=False)
    assert not sign_in.is_offered(), "this machine is no Space"
    monkeypatch.setenv("SYSTEM", "spaces")
    monkeypatch.setenv("SPACE_ID", "me/space")
    assert sign_in.is_offered()
    monkeypatch.delenv("OAUTH_SCOPES")
    assert not sign_in.is_offered(), "hf_oauth is not in the Space's metadata"
