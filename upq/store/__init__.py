"""All SQL: the queue of runs, what they report and the artifacts they leave, in one SQLite file."""

from upq.store.artifacts import Prepared, prepare
from upq.store.database import Store
from upq.store.folder import checkpoint_dir, data_dir, database_path, exports_dir, open_store
from upq.store.labels import NAME_CHARACTERS, NOTE_CHARACTERS, Labels, Wanted
from upq.store.lease import LostLease
from upq.store.pack import Moved
from upq.store.run import HOUSE, SILENT, Ending, Run, RunState, run_not_found

__all__ = [
    "HOUSE",
    "NAME_CHARACTERS",
    "NOTE_CHARACTERS",
    "SILENT",
    "Ending",
    "Labels",
    "LostLease",
    "Moved",
    "Prepared",
    "Run",
    "RunState",
    "Store",
    "Wanted",
    "checkpoint_dir",
    "data_dir",
    "database_path",
    "exports_dir",
    "open_store",
    "prepare",
    "run_not_found",
]
