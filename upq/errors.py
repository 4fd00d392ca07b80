"""The exceptions that cross module borders.

`UserError` is the only one a person ever reads; `Cancelled` and `Interrupted` end a run on purpose.
"""


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


class Cancelled(Exception):
    """The user asked the run to stop; its checkpoint is kept."""


class Interrupted(Exception):
    """The process has to leave (SIGTERM); the run is resumable."""
