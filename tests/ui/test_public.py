"""Strangers on one app: each sees and changes what is theirs, whichever way they ask, within limits."""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.strangers import SECRET_ANSWER, SECRET_LINE, Place, events, open_to_strangers
from tests.ui.lab import verdicts
from tests.ui.open_app import OpenApp
from tests.unit.jobs.test_served import stored_run
from ui.api import ENDPOINTS
from ui.public.guarded import VisitorStore
from ui.public.visitors import COOKIE
from upq.models import LoadedModel, load
from upq.store import Store

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Scene:
    """Ada and Bob on one app. Ada has a finished run with a check; one more run is everybody's."""

    place: Place
    ada: OpenApp
    bob: OpenApp
    of_ada: int
    check: int
    of_all: int


def started(visitor: OpenApp, place: Place, **more: Any) -> Any:
    asked = {"model": place.model, "method": "rtn", "preset": "smoke"}
    return visitor.call("start_run", asked | more, by_name=True)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Iterator[Scene]:
    loaded: LoadedModel = load(str(tiny_model_dir))
    folder = tmp_path_factory.mktemp("public")
    with (
        open_to_strangers(folder, str(tiny_model_dir), answers=1000) as place,
        place.visitor() as ada,
        place.visitor() as bob,
    ):
        of_all = stored_run(place.house, loaded, tiny_model_dir)
        answer = started(ada, place)
        assert answer.refusal is None
        of_ada = place.finish(loaded)
        assert of_ada == answer.results[0]["run_id"]
        checking = ada.call("run_checks", {"run_id": of_ada, "max_tokens": 8}, by_name=True)
        assert checking.refusal is None
        check = place.house.claim("cpu@here:1", 1, 60.0)
        assert check is not None
        lease = place.house.lease(check)
        for position, outcome in enumerate(verdicts(True, response=SECRET_ANSWER)):
            lease.save_check_result("INT2", position, outcome)
        lease.finish("done")
        yield Scene(place, ada, bob, of_ada, check.id, of_all)


def test_each_visitor_lists_their_own_runs_and_those_of_the_house(scene: Scene) -> None:
    def listed(visitor: OpenApp) -> list[int]:
        return [run["id"] for run in visitor.call("list_runs", {"data": []}).results[0]]

    assert listed(scene.ada) == [scene.check, scene.of_ada, scene.of_all]
    assert listed(scene.bob) == [scene.of_all]


def arguments(name: str, run_id: int) -> dict[str, Any]:
    """Arguments of an endpoint, by name, that are right but for the run."""
    known: dict[str, Any] = {
        "run_id": run_id,
        "precision": "INT4",
        "message": "hi",
        "format": "packed",
    }
    return {
        key: value for key, value in known.items() if key in ENDPOINTS[name].request.model_fields
    }


OF_A_RUN = [name for name in ENDPOINTS if "run_id" in ENDPOINTS[name].request.model_fields]


@pytest.mark.parametrize("name", OF_A_RUN)
def test_for_every_endpoint_the_run_of_another_visitor_is_not_there(
    scene: Scene, name: str
) -> None:
    before = dataclasses.replace(scene.place.house.run(scene.of_ada))
    for run_id in (scene.of_ada, scene.check):
        answer = scene.bob.call(name, arguments(name, run_id), by_name=True)
        assert answer.results == []
        assert answer.refusal == f"There is no run {run_id}. It may have been deleted."
        nothing = scene.bob.call(name, arguments(name, 4242), by_name=True)
        assert nothing.refusal == "There is no run 4242. It may have been deleted."
    assert scene.place.house.run(scene.of_ada) == before
    assert [run.id for run in scene.place.house.runs()] == [scene.check, scene.of_ada, scene.of_all]


def test_every_endpoint_is_walked() -> None:
    of_whoever_asks = {"start_run", "list_runs", "list_conversations", "conversation"}
    assert set(OF_A_RUN) == set(ENDPOINTS) - of_whoever_asks


def test_their_own_run_is_there_for_its_owner(scene: Scene) -> None:
    (status,) = scene.ada.call("run_status", {"run_id": scene.of_ada}, by_name=True).results
    assert (status["state"], len(status["artifacts"])) == ("done", 2)
    assert "owner" not in status
    asked = {"run_id": scene.of_ada, "precision": "INT2", "message": "hi", "max_tokens": 4}
    assert scene.ada.call("chat", asked, by_name=True).results[-1]["done"]
    # The model is in memory now, and still not there for others.
    assert scene.bob.call("chat", asked, by_name=True).refusal == (
        f"There is no run {scene.of_ada}. It may have been deleted."
    )


def all_events(visitor: OpenApp, run_id: int) -> list[dict[str, Any]]:
    """Every event of the page with a run's number wherever a value goes, and every button of it."""
    clicks = [
        {"action": action, "run": str(run_id), "format": "packed"}
        for action in ("open", "resume", "again", "delete", "make", "cancel")
    ]
    found = []
    for event in visitor.client.get("config").json()["dependencies"]:
        if event["api_visibility"] != "private":
            continue
        body = {"data": [run_id] * len(event["inputs"]), "fn_index": event["id"]}
        found += [body, body | {"data": [[run_id]] * len(event["inputs"])}]
        if any(trigger == "click" for _, trigger in event["targets"]):
            found += [body | {"event_data": click} for click in clicks]
    return found


def test_no_event_of_the_page_shows_or_changes_the_run_of_another_visitor(scene: Scene) -> None:
    before = scene.place.house.run(scene.of_ada)
    asked = all_events(scene.bob, scene.of_ada)
    assert len(asked) > 150
    told = json.dumps(events(scene.bob, "bobs page", asked))
    assert len(told) > 10_000
    for secret in (SECRET_LINE, SECRET_ANSWER, f"#{scene.of_ada} ", f"#{scene.check} "):
        assert secret not in told.replace(f"There is no run {scene.of_ada}", "")
    assert scene.place.house.run(scene.of_ada) == before
    assert scene.place.house.run(scene.check).state == "done"
    # The same events show it to its owner, so the walk is one that would find it.
    shown = [body for body in all_events(scene.ada, scene.of_ada) if "event_data" not in body]
    told = json.dumps(events(scene.ada, "adas page", shown))
    assert SECRET_LINE in told
    assert f"#{scene.of_ada} " in told


@pytest.mark.parametrize(
    ("name", "words"),
    [("cancel_run", "none of them can change it"), ("resume_run", "none of them can change it")],
)
def test_a_run_of_the_house_is_used_by_all_and_changed_by_none(
    scene: Scene, name: str, words: str
) -> None:
    answer = scene.bob.call(name, {"run_id": scene.of_all}, by_name=True)
    assert words in str(answer.refusal)
    asked = {"run_id": scene.of_all, "precision": "INT4", "message": "hi", "max_tokens": 4}
    assert scene.bob.call("chat", asked, by_name=True).results[-1]["done"]


def test_files_of_an_export_go_to_those_who_may_see_its_run(scene: Scene) -> None:
    asked = {"run_id": scene.of_ada, "precision": "INT4", "format": "packed"}
    (made,) = scene.ada.call("make_export", asked, by_name=True).results
    file = f"{made['folder']}/{made['files'][0]['name']}"
    sideways = f"{made['folder']}/../{Path(made['folder']).name}/{made['files'][0]['name']}"
    for path in (file, sideways, file.replace("/exports/", "/exports/./")):
        assert scene.bob.client.get(f"gradio_api/file={path}").status_code in (403, 404)
        assert httpx.get(f"{scene.place.url}gradio_api/file={path}").status_code in (403, 404)
    assert scene.ada.client.get(f"gradio_api/file={file}").status_code == 200
    assert scene.bob.call("make_export", asked, by_name=True).results == []


def test_files_of_an_export_go_to_the_account_that_owns_its_run(
    tmp_path: Path, tiny_model_dir: Path
) -> None:
    model = str(tiny_model_dir)
    with (
        open_to_strangers(tmp_path, model, with_passwords=True) as place,
        place.visitor("ada") as ada,
        place.visitor("bob") as bob,
    ):
        assert started(ada, place).refusal is None
        asked = {"run_id": place.finish(load(model)), "precision": "INT4", "format": "packed"}
        (made,) = ada.call("make_export", asked, by_name=True).results
        file = f"gradio_api/file={made['folder']}/{made['files'][0]['name']}"
        assert ada.client.get(file).status_code == httpx.codes.OK
        assert bob.client.get(file).status_code == httpx.codes.NOT_FOUND
        browser = {COOKIE: str(ada.client.cookies[COOKIE])}
        for cookies in ({}, browser):
            nobody = httpx.get(place.url + file, cookies=cookies)
            assert nobody.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.NOT_FOUND)


def test_a_name_that_was_made_up_is_nobodys(scene: Scene) -> None:
    (cookie,) = [one for one in scene.ada.client.cookies.jar if one.name == COOKIE]
    assert cookie.value is not None
    name, _, signature = cookie.value.partition(".")
    for forged in (name, f"{name}.", f"{name}.{signature[::-1]}", f"x{name}.{signature}"):
        with httpx.Client(base_url=scene.place.url, timeout=60) as client:
            client.cookies.set(COOKIE, forged)
            stranger = dataclasses.replace(scene.bob, client=client)
            runs = stranger.call("list_runs", {"data": []}).results[0]
            assert [run["id"] for run in runs] == [scene.of_all]


def test_the_cookie_is_kept_from_scripts_and_fits_where_the_page_is_shown(scene: Scene) -> None:
    plain = httpx.get(scene.place.url).headers["set-cookie"]
    assert plain.endswith("HttpOnly; SameSite=Lax")
    space = httpx.get(scene.place.url, headers={"X-Forwarded-Proto": "https"})
    assert space.headers["set-cookie"].endswith("HttpOnly; SameSite=None; Secure; Partitioned")
    again = scene.ada.client.get("")
    assert "set-cookie" not in again.headers


#: What a handler may ask of the store without saying for which run, and what only workers and the program itself ask.
HARMLESS = {"close", "latest_revision", "note", "set_note", "owner"}
OF_THE_PROGRAM = {
    "adopt",
    "cached_answers",
    "claim",
    "doctor",
    "hand_over",
    "has_left",
    "lease",
    "may_adopt",
    "reconcile",
    "requeue_interrupted",
    "save_answers",
    "text_bytes",
    "unpack",
}


def test_every_method_of_the_store_asks_whether_the_visitor_may_or_is_known_to_be_harmless() -> (
    None
):
    methods = {name for name, _ in inspect.getmembers(Store) if not name.startswith("_")}
    guarded = {name for name in vars(VisitorStore) if not name.startswith("_")} - HARMLESS
    assert methods == guarded | HARMLESS | OF_THE_PROGRAM


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": "/etc"}, "model is '/etc'; expected bundled or "),
        ({"model": "owner/name"}, "model is 'owner/name'; expected bundled or "),
        ({"preset": "paper"}, "preset is 'paper'; expected smoke or quick"),
        ({"settings_json": '{"int2.distill.tokens": 9000000}'}, "int2.distill.tokens is changed"),
        ({"settings_json": '{"data.source": "file", "data.path": "/etc/passwd"}'}, "data."),
    ],
)
def test_a_run_beyond_the_limits_is_refused_in_one_sentence(
    scene: Scene, changes: dict[str, str], words: str
) -> None:
    refusal = str(started(scene.bob, scene.place, **changes).refusal)
    assert refusal.startswith("On this machine visitors cannot have that: ")
    assert words in refusal
    assert scene.place.house.runs(owner="nobody")[0].id == scene.of_all


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"suite": "ifeval", "path": "/etc/passwd"}, "path is '/etc/passwd'; expected none"),
        ({"suite": "mmlu"}, "suite is 'mmlu'; expected builtin"),
        ({"max_tokens": 4000}, "visitors' answers have at most 512"),
    ],
)
def test_a_check_beyond_the_limits_is_refused_in_one_sentence(
    scene: Scene, changes: dict[str, Any], words: str
) -> None:
    asked = {"run_id": scene.of_all} | changes
    assert words in str(scene.bob.call("run_checks", asked, by_name=True).refusal)


def test_an_answer_that_is_too_long_is_refused_in_one_sentence(scene: Scene) -> None:
    asked = {"run_id": scene.of_all, "precision": "INT4", "message": "hi", "max_tokens": 513}
    refusal = scene.bob.call("chat", asked, by_name=True).refusal
    assert refusal == (
        "An answer of up to 513 tokens is asked for; visitors' answers have at most 512."
        " Lower the longest answer."
    )
