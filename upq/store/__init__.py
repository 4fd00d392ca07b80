"""All SQL: the queue of runs, what they report and the artifacts they leave, in one SQLite file."""

from upq.store.artifacts import Prepared, prepare
from upq.store.database import Store
from upq.store.folder import checkpoint_dir, data_dir, exports_dir, open_store
from upq.store.lease import LostLease
from upq.store.pack import Moved
from upq.store.run import SILENT, Ending, Run
from upq.store.votes import Choice, Vote, Written, question_digest, votes_csv

__all__ = [
    "SILENT",
    "Choice",
    "Ending",
    "LostLease",
    "Moved",
    "Prepared",
    "Run",
    "Store",
    "Vote",
    "Written",
    "checkpoint_dir",
    "data_dir",
    "exports_dir",
    "open_store",
    "prepare",
    "question_digest",
    "votes_csv",
]
