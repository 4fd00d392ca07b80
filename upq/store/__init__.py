"""All SQL: the queue of runs, what they report and the artifacts they leave, in one SQLite file."""

from upq.store.artifacts import Prepared, prepare
from upq.store.database import Store
from upq.store.folder import checkpoint_dir, data_dir, database_path, exports_dir, open_store
from upq.store.lease import LostLease
from upq.store.pack import Moved
from upq.store.run import HOUSE, SILENT, Ending, Run, run_not_found

__all__ = [
    "HOUSE",
    "SILENT",
    "Ending",
    "LostLease",
    "Moved",
    "Prepared",
    "Run",
    "Store",
    "checkpoint_dir",
    "data_dir",
    "database_path",
    "exports_dir",
    "open_store",
    "prepare",
    "run_not_found",
]
