"""Whatever a run raised, and however its worker was lost, as one sentence for people with a hint."""

from __future__ import annotations

import errno
import os
import signal

from safetensors import SafetensorError

from upq.errors import UserError
from upq.store import Ending

_DISK_FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
_NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")
_TORCH_WRITE = ("inline_container", "enforce fail", "failed writing")


def describe_failure(error: Exception) -> UserError:
    """The error as one that a person can act on; the traceback belongs in the log."""
    if isinstance(error, UserError):
        return error
    if _is_out_of_memory(error):
        return UserError(
            "out_of_memory",
            "The run needed more memory than there is.",
            "Lower int2.distill.batch_tokens and data.sequence_tokens, or take a smaller model.",
        )
    if _is_disk_full(error):
        return UserError(
            "disk_full",
            "A file could not be written: the disk of the data folder is full.",
            "Free some space, then resume the run; it goes on from its last checkpoint.",
        )
    if isinstance(error, FloatingPointError):
        return UserError(
            "diverged",
            f"The training diverged: {error}.",
            "Lower int2.distill.weight_lr and scale_lr, or choose another seed.",
        )
    return UserError(
        "internal_error",
        f"The run stopped at an error that this program did not expect ({type(error).__name__}).",
        "The run's log ends with the details; please report them.",
    )


def _is_out_of_memory(error: Exception) -> bool:
    text = str(error).lower()
    in_torch = isinstance(error, RuntimeError) and any(phrase in text for phrase in _NO_MEMORY)
    return isinstance(error, MemoryError) or in_torch


def _is_disk_full(error: Exception) -> bool:
    """Three libraries, three shapes. What SQLite reports is a UserError of the store already."""
    text = str(error)
    if isinstance(error, SafetensorError):
        return "I/O error" in text or "IoError" in text
    if isinstance(error, RuntimeError):
        return any(phrase in text for phrase in _TORCH_WRITE)
    return isinstance(error, OSError) and error.errno in _DISK_FULL


def lost_worker(returncode: int) -> Ending:
    """How a worker process ended. returncode: as subprocess gives it, a signal's number negated."""
    if returncode == -signal.SIGKILL:
        return Ending(
            "the worker process was killed by signal 9 (the system may have run out of memory)",
            "Resume the run to try again; a smaller model or batch needs less memory.",
        )
    again = "Resume the run to try again."
    if returncode < 0:
        return Ending(f"the worker process was killed by {_signal(-returncode)}", again)
    return Ending(f"the worker process ended with exit code {returncode}", again)


def stopped_worker(pid: int) -> Ending | None:
    """What keeps a child process from going on, if a signal such as SIGSTOP does."""
    try:
        found = os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return None  # of an earlier app
    if found is None or found.si_code != os.CLD_STOPPED:
        return None
    return Ending(
        f"the worker process was stopped by {_signal(found.si_status)} and stopped answering",
        "Resume the run to try again; find out who stops its process.",
    )


def _signal(number: int) -> str:
    try:
        return f"signal {number} ({signal.Signals(number).name})"
    except ValueError:  # a real-time signal has no name
        return f"signal {number}"
