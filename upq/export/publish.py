"""An export sent to the hub: a model repository is made where there is none, and the folder becomes its files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    # From httpx or httpx2, whichever the hub client is built on.
    HTTPError,  # pyright: ignore[reportPrivateImportUsage]
    OfflineModeIsEnabled,
)
from huggingface_hub.utils import validate_repo_id

from upq.errors import UserError, shown
from upq.files import MANIFEST

_Error = TypeVar("_Error", bound=BaseException)
LOG_IN = "Run `hf auth login` with a token that may write, or set HF_TOKEN."
SIGN_IN = "Sign out and in again, and let this app write to your models."
#: What the hub answers where it does not know who asks, or does not let them.
UNKNOWN, PAYMENT, FORBIDDEN, NOT_FOUND = 401, 402, 403, 404
LONGEST_WORDS = 200


@dataclass(frozen=True)
class Publication:
    """What was sent. address: the model's page."""

    address: str
    files: list[str]


def require_repo(repo: str) -> None:
    """Raise UserError("bad_repo") unless the name is one that a model on the hub can have, its owner before it."""
    try:
        validate_repo_id(repo)
        has_owner = repo.count("/") == 1
    except HFValidationError:
        has_owner = False
    if not has_owner:
        raise UserError(
            "bad_repo",
            f"{shown(repo)} is no name of a model on the hub; expected OWNER/NAME of letters, digits, dots and dashes.",
            "The owner is your user name or an organization of yours.",
        )


def require_login(token: str | None = None) -> None:
    """Ask the hub who sends, before any work. token: of somebody; None for that of this machine.

    Raises UserError: no_token, not_allowed, offline, hub_failed.
    """
    if token is None and get_token() is None:
        raise UserError("no_token", "Nobody is logged in to the hub on this machine.", LOG_IN)
    with _words("The hub", LOG_IN if token is None else SIGN_IN):
        HfApi(token=token).whoami()


def publish(folder: Path, repo: str, private: bool, token: str | None = None) -> Publication:
    """Send a folder, its model card with it. private: whether a repository that is made now is; token: as above.

    Raises UserError: bad_repo, no_token, not_allowed, offline, hub_failed. What was sent before an error stays there,
    and sending again goes on.
    """
    require_repo(repo)
    require_login(token)
    api = HfApi(token=token)
    owner = repo.partition("/")[0]
    with _words(
        repo,
        f"Check that {owner} is you or an organization of yours, and that the token may write there.",
    ):
        address = api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            commit_message="Add the model",
            ignore_patterns=[MANIFEST],
        )
    return Publication(str(address), files_of(folder))


def files_of(folder: Path) -> list[str]:
    """The names of what `publish` sends of a folder."""
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    return sorted(path.relative_to(folder).as_posix() for path in paths)


@contextmanager
def _words(what: str, hint: str) -> Iterator[None]:
    """Whatever the hub's client raises becomes one sentence. what: was to be reached. hint: where it is not allowed."""
    try:
        yield
    except OfflineModeIsEnabled as error:
        raise UserError(
            "offline", "HF_HUB_OFFLINE is set, so nothing is sent.", "Unset it."
        ) from error
    except Exception as error:  # hf_xet and threads of the upload raise errors of their own
        refusal = _cause(error, HfHubHTTPError)
        if refusal is None:
            raise _unanswered(error) from error
        status, said = refusal.response.status_code, _said(refusal)
        if status in (UNKNOWN, PAYMENT, FORBIDDEN, NOT_FOUND):
            raise UserError(
                "not_allowed", f"{what} refused the upload ({status}): {said}.", hint
            ) from error
        raise UserError(
            "hub_failed",
            f"{what} could not take the upload ({status}): {said}.",
            "Try again later.",
        ) from error


def _cause(error: BaseException | None, kind: type[_Error]) -> _Error | None:
    """An error of this kind among an error and its causes."""
    while error is not None and not isinstance(error, kind):
        error = error.__cause__
    return error


def _said(refusal: HfHubHTTPError) -> str:
    """The hub's own words, on one line."""
    words = refusal.server_message or refusal.response.reason_phrase or "it gave no reason"
    return " ".join(words.split())[:LONGEST_WORDS].rstrip(".")


def _unanswered(error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:LONGEST_WORDS].rstrip(".") or type(error).__name__
    if _cause(error, HTTPError):
        return UserError(
            "offline", f"The hub could not be reached: {reason}.", "Check the connection."
        )
    return UserError("hub_failed", f"The upload failed: {reason}.", "Try again; sending goes on.")
