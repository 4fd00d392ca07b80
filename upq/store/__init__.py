"""All SQL: the queue of runs, what they report and the artifacts they leave, in one SQLite file."""

from upq.store.artifacts import Prepared, prepare
from upq.store.conversation_text import (
    about,
    as_lines,
    as_markdown,
    drawn_with,
    ending,
    numbered,
    precisions_of,
)
from upq.store.conversations import (
    MOST_KEPT,
    SEARCH_CHARACTERS,
    Answer,
    Author,
    Content,
    Conversation,
    Conversations,
    Exchange,
    Found,
    Headline,
    Place,
)
from upq.store.database import Store
from upq.store.folder import checkpoint_dir, data_dir, database_path, exports_dir, open_store
from upq.store.labels import NAME_CHARACTERS, NOTE_CHARACTERS, Labels, Wanted
from upq.store.lease import LostLease
from upq.store.pack import Moved
from upq.store.run import HOUSE, SILENT, Ending, Run, RunState, run_not_found
from upq.store.votes import Choice, Vote, Votes, Written, question_digest, votes_csv

__all__ = [
    "HOUSE",
    "MOST_KEPT",
    "NAME_CHARACTERS",
    "NOTE_CHARACTERS",
    "SEARCH_CHARACTERS",
    "SILENT",
    "Answer",
    "Author",
    "Choice",
    "Content",
    "Conversation",
    "Conversations",
    "Ending",
    "Exchange",
    "Found",
    "Headline",
    "Labels",
    "LostLease",
    "Moved",
    "Place",
    "Prepared",
    "Run",
    "RunState",
    "Store",
    "Vote",
    "Votes",
    "Wanted",
    "Written",
    "about",
    "as_lines",
    "as_markdown",
    "checkpoint_dir",
    "data_dir",
    "database_path",
    "drawn_with",
    "ending",
    "exports_dir",
    "numbered",
    "open_store",
    "precisions_of",
    "prepare",
    "question_digest",
    "run_not_found",
    "votes_csv",
]
