"""Files arrive on the hub byte for byte; whatever the hub answers becomes one sentence. The hub is a stand-in here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from tests.support.hub import LARGE_BYTES, Hub, in_place_of_the_hub
from upq.errors import UserError
from upq.export.publish import publish, require_login, require_repo
from upq.files import commit_dir

#: The hub's client calls its own HTTP library in a way that this calls old.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
FILES = {
    "README.md": b"---\ntags:\n- a\n---\n# A model\n",
    "model.safetensors": bytes(range(256)) * (LARGE_BYTES // 128),
    "sub/config.json": b"{}",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    def write(staging: Path) -> None:
        for name, content in FILES.items():
            (staging / name).parent.mkdir(exist_ok=True)
            (staging / name).write_bytes(content)

    commit_dir(tmp_path / "files", write)
    return tmp_path / "files"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with in_place_of_the_hub(monkeypatch) as running:
        yield running


def refused(folder: Path, repo: str = "me/tiny") -> UserError:
    with pytest.raises(UserError) as caught:
        publish(folder, repo, private=False)
    assert "\n" not in caught.value.message
    assert "hf_secret" not in caught.value.message
    return caught.value


@pytest.mark.parametrize("private", [True, False])
def test_every_file_arrives_byte_for_byte_and_the_manifest_stays(
    hub: Hub, folder: Path, private: bool
) -> None:
    sent = publish(folder, "me/tiny-UPQ", private)
    assert hub.models == {"me/tiny-UPQ": FILES}
    assert hub.private == {"me/tiny-UPQ": private}
    assert len(hub.large) == 1
    assert (sent.address, sent.files) == (f"{hub.address}/me/tiny-UPQ", sorted(FILES))


def test_the_token_of_somebody_is_used_in_place_of_this_machines(
    hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "of this machine")
    assert refused(folder).code == "not_allowed"
    publish(folder, "me/tiny", private=False, token=hub.token)
    assert hub.models == {"me/tiny": FILES}


def test_a_model_that_is_there_gets_the_new_files(hub: Hub, folder: Path) -> None:
    publish(folder, "me/tiny", private=False)
    (folder / "sub" / "config.json").write_bytes(b'{"a": 1}')
    publish(folder, "me/tiny", private=False)
    assert hub.models["me/tiny"] == FILES | {"sub/config.json": b'{"a": 1}'}


@pytest.mark.parametrize(
    "repo",
    [
        "tiny",
        "a/b/c",
        "",
        "me/",
        "/tiny",
        "me/ti ny",
        "me/..",
        "me/a--b",
        "me/a.git",
        "me/" + "x" * 200,
    ],
)
def test_a_name_that_no_model_can_have_is_refused_before_anything_is_asked(
    hub: Hub, folder: Path, repo: str
) -> None:
    assert refused(folder, repo).code == "bad_repo"
    with pytest.raises(UserError, match="expected OWNER/NAME"):
        require_repo(repo)
    assert hub.calls == []


def test_what_the_hub_refuses_is_said_in_its_words(hub: Hub, folder: Path) -> None:
    error = refused(folder, "somebody/tiny")
    assert error.code == "not_allowed"
    assert 'rights to create a model under the namespace "somebody"' in error.message
    assert hub.models == {}
    for path, status, code in (
        ("/api/models/me/tiny/preupload", 404, "not_allowed"),
        ("/me/tiny.git/info/lfs", 403, "not_allowed"),
        ("/api/models/me/tiny/commit", 400, "hub_failed"),
        ("/api/models/me/tiny/commit", 500, "hub_failed"),
    ):
        hub.refusals = {path: (status, "Because of\nthe moon.")}
        error = refused(folder)
        assert (error.code, f"({status}): Because of the moon." in error.message) == (code, True), (
            error.message
        )


def test_a_wrong_token_and_none_at_all_are_two_sentences(
    hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_of_somebody_else")
    assert refused(folder).code == "not_allowed"
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    hub.calls.clear()
    assert refused(folder).code == "no_token"
    with pytest.raises(UserError, match="Nobody is logged in"):
        require_login()
    assert hub.calls == []


def test_no_connection_is_one_sentence(
    hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    assert refused(folder).code == "offline"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert refused(folder).message == "HF_HUB_OFFLINE is set, so nothing is sent."
