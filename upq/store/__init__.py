"""All SQL: the queue of runs, what they report and the artifacts they leave, in one SQLite file."""

from upq.store.artifacts import Prepared, prepare
from upq.store.conversations import (
    Answer,
    Author,
    Content,
    Conversation,
    Exchange,
    Headline,
    Place,
)
from upq.store.database import Store
from upq.store.folder import checkpoint_dir, data_dir, exports_dir, open_store
from upq.store.lease import LostLease
from upq.store.pack import Moved
from upq.store.run import SILENT, Ending, Run

__all__ = [
    "SILENT",
    "Answer",
    "Author",
    "Content",
    "Conversation",
    "Ending",
    "Exchange",
    "Headline",
    "LostLease",
    "Moved",
    "Place",
    "Prepared",
    "Run",
    "Store",
    "checkpoint_dir",
    "data_dir",
    "exports_dir",
    "open_store",
    "prepare",
]
