"""The exceptions that cross module borders.

`UserError` is the only one a person ever reads; `Cancelled` and `Interrupted` end a run on purpose.
"""

import reprlib

_SHORT = reprlib.Repr()
#: So many characters tell a person which text or number is meant.
_SHORT.maxstring = _SHORT.maxlong = _SHORT.maxother = 100


class UserError(Exception):
    """Something the user can act on.

    code: stable machine name, e.g. "model_not_found" (listed in docs/errors.md).
    message: one sentence, what was found and what was expected.
    hint: what to do about it; may be empty.
    """

    def __init__(self, code: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint


def shown(value: object) -> str:
    """A value as a message quotes it: on one line, and cut in the middle if it is long."""
    return _SHORT.repr(value)


class Cancelled(Exception):
    """The user asked the run to stop; its checkpoint is kept."""


class Interrupted(Exception):
    """The process has to leave (SIGTERM); the run is resumable."""
