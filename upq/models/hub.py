"""One file of a model on the hub, or an answer soon.

The hub's client tries again and again where there is no connection, for most of a minute, and has no limit of its own
for all of that. So it works in a thread, and who asks waits HUB_S at most. What comes later is in the client's cache
when somebody asks again.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future
from concurrent.futures import TimeoutError as OutOfTime
from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from upq.errors import UserError

#: Seconds that somebody who asks waits for the hub.
HUB_S = 5.0

_Question = tuple[str, str, str | None]
_asked: dict[_Question, Future[str]] = {}
_lock = threading.Lock()


def hub_file(repo: str, file: str, revision: str | None = None) -> Path:
    """A file of a model, from the hub or, where the hub does not answer in time, from the cache of its client.

    Raises UserError("offline") after HUB_S seconds at most.
    """
    try:
        return Path(_download((repo, file, revision)).result(timeout=HUB_S))
    except OutOfTime:
        return _kept(repo, file, revision)
    except (HfHubHTTPError, OSError) as error:
        raise _unread(repo, file, _reason(error)) from error


def _download(question: _Question) -> Future[str]:
    """The download of a file, which all who ask for it share; one that failed is tried again by the next who asks."""
    with _lock:
        if question in _asked:
            return _asked[question]
        future = _asked[question] = Future()
    repo, file, revision = question

    def work() -> None:
        try:
            future.set_result(hf_hub_download(repo, file, revision=revision))
        except BaseException as error:
            with _lock:
                _asked.pop(question, None)
            future.set_exception(error)

    threading.Thread(target=work, name=f"hub {repo}", daemon=True).start()
    return future


def _kept(repo: str, file: str, revision: str | None) -> Path:
    try:
        return Path(hf_hub_download(repo, file, revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, OSError) as error:
        raise _unread(repo, file, f"the hub did not answer within {HUB_S:.0f} s") from error


def _reason(error: Exception) -> str:
    if isinstance(error, GatedRepoError):
        return "the hub asks you to accept its licence first"
    if isinstance(error, RepositoryNotFoundError):
        return "the hub has no such model, or it is private"
    if isinstance(error, LocalEntryNotFoundError | OfflineModeIsEnabled):
        return "it is not on this machine and the hub cannot be reached"
    return str(error).splitlines()[0]


def _unread(repo: str, file: str, why: str) -> UserError:
    return UserError(
        "offline",
        f"The {file} of {repo} could not be read: {why.rstrip('.')}.",
        "Check the id and the connection, or use a local folder or the bundled model.",
    )
