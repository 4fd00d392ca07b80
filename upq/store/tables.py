"""The database's tables, as the scripts that make them from nothing or from an older version."""

from __future__ import annotations

_TABLES = """
CREATE TABLE revision (value INTEGER NOT NULL) STRICT;
INSERT INTO revision VALUES (0);

CREATE TABLE runs (
    id INTEGER PRIMARY KEY AUTOINCREMENT,  -- never reused: checkpoint folders carry it
    kind TEXT NOT NULL CHECK (kind IN ('quantize', 'check')),
    state TEXT NOT NULL DEFAULT 'queued'
        CHECK (state IN ('queued', 'running', 'done', 'failed', 'cancelled', 'interrupted')),
    name TEXT NOT NULL,
    model TEXT NOT NULL,
    method TEXT NOT NULL,
    preset TEXT NOT NULL,
    config TEXT NOT NULL,
    parent_id INTEGER REFERENCES runs (id) ON DELETE CASCADE,
    created_at REAL NOT NULL,
    started_at REAL,
    ended_at REAL,
    stage TEXT NOT NULL DEFAULT '',
    stage_step INTEGER NOT NULL DEFAULT 0,
    stage_total INTEGER NOT NULL DEFAULT 0,
    detail TEXT NOT NULL DEFAULT '',
    tokens_per_s REAL,
    eta_s REAL,
    peak_bytes INTEGER,
    stages TEXT NOT NULL DEFAULT '{}',
    cancel_requested INTEGER NOT NULL DEFAULT 0 CHECK (cancel_requested IN (0, 1)),
    worker TEXT,
    pid INTEGER,
    attempt INTEGER NOT NULL DEFAULT 0,
    crashes INTEGER NOT NULL DEFAULT 0,
    lease_s REAL,
    lease_until REAL,
    error_code TEXT NOT NULL DEFAULT '',
    error_message TEXT NOT NULL DEFAULT '',
    error_hint TEXT NOT NULL DEFAULT '',
    revision INTEGER NOT NULL DEFAULT 0,
    CHECK (state <> 'running' OR (worker IS NOT NULL AND lease_until IS NOT NULL))
) STRICT;
CREATE INDEX runs_by_state ON runs (state, id);
CREATE INDEX runs_by_parent ON runs (parent_id);

CREATE TABLE metrics (
    run_id INTEGER NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
    series TEXT NOT NULL,
    step INTEGER NOT NULL,
    value REAL NOT NULL,
    PRIMARY KEY (run_id, series, step)
) STRICT, WITHOUT ROWID;

CREATE TABLE log (
    id INTEGER PRIMARY KEY,
    run_id INTEGER NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
    at REAL NOT NULL,
    line TEXT NOT NULL
) STRICT;
CREATE INDEX log_by_run ON log (run_id, id);

CREATE TABLE measurements (
    run_id INTEGER NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
    label TEXT NOT NULL,
    precision TEXT NOT NULL,
    kl REAL,
    kl_p95 REAL,
    top1 REAL,
    ppl REAL,
    tokens INTEGER,
    bits_per_weight REAL,
    size_bytes INTEGER,
    seconds REAL,
    extra TEXT NOT NULL,
    PRIMARY KEY (run_id, label)
) STRICT;

CREATE TABLE check_results (
    run_id INTEGER NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
    precision TEXT NOT NULL,
    position INTEGER NOT NULL,
    result TEXT NOT NULL,
    PRIMARY KEY (run_id, precision, position)
) STRICT;

CREATE TABLE answers (
    key TEXT NOT NULL,
    prompt TEXT NOT NULL,
    tokens TEXT NOT NULL,
    PRIMARY KEY (key, prompt)
) STRICT;

CREATE TABLE notes (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;

CREATE TABLE blobs (
    digest TEXT PRIMARY KEY,
    size_bytes INTEGER NOT NULL
) STRICT;

CREATE TABLE parts (
    blob_digest TEXT NOT NULL REFERENCES blobs (digest) ON DELETE CASCADE,
    position INTEGER NOT NULL,
    sha256 TEXT NOT NULL,
    data BLOB NOT NULL,
    PRIMARY KEY (blob_digest, position)
) STRICT;

CREATE TABLE artifacts (
    id INTEGER PRIMARY KEY,
    run_id INTEGER NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
    precision TEXT NOT NULL,
    manifest TEXT NOT NULL,
    size_bytes INTEGER NOT NULL,
    bits_per_weight REAL NOT NULL,
    created_at REAL NOT NULL,
    UNIQUE (run_id, precision)
) STRICT;

CREATE TABLE artifact_tensors (
    artifact_id INTEGER NOT NULL REFERENCES artifacts (id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    dtype TEXT NOT NULL,
    shape TEXT NOT NULL,
    blob_digest TEXT NOT NULL REFERENCES blobs (digest),
    PRIMARY KEY (artifact_id, name)
) STRICT;
CREATE INDEX tensors_by_blob ON artifact_tensors (blob_digest);

CREATE TABLE artifact_files (
    artifact_id INTEGER NOT NULL REFERENCES artifacts (id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    blob_digest TEXT NOT NULL REFERENCES blobs (digest),
    PRIMARY KEY (artifact_id, name)
) STRICT;
CREATE INDEX files_by_blob ON artifact_files (blob_digest);
"""

#: Time is counted while a worker holds the run, so a pause is nobody's training time. Points of older runs have none.
_PROVENANCE = """
ALTER TABLE runs ADD COLUMN worked_s REAL NOT NULL DEFAULT 0;
ALTER TABLE runs ADD COLUMN environments TEXT NOT NULL DEFAULT '[]';
ALTER TABLE metrics ADD COLUMN at_s REAL;
UPDATE runs SET worked_s = max(0, ended_at - started_at) WHERE ended_at > started_at;
UPDATE runs SET  -- stages are named as the settings are
    stages = replace(replace(stages, '"int2":', '"int2_distill":'), '"warm":', '"int2":'),
    stage = CASE stage WHEN 'int2' THEN 'int2_distill' WHEN 'warm' THEN 'int2' ELSE stage END
WHERE kind = 'quantize';
"""

#: PyTorch's peak of allocated memory; NULL where no GPU computed.
_GPU_MEMORY = "ALTER TABLE runs ADD COLUMN gpu_peak_bytes INTEGER;"

#: What the engine that answers gives, where that is not what the other columns were computed with; else NULL.
_AS_SERVED = """
ALTER TABLE measurements ADD COLUMN served_kl REAL;
ALTER TABLE measurements ADD COLUMN served_top1 REAL;
ALTER TABLE measurements ADD COLUMN served_ppl REAL;
ALTER TABLE measurements ADD COLUMN served_by TEXT;
"""

#: Whose run it is: '' belongs to the house, and everybody sees it; else a visitor of an app that is open to strangers.
_OWNERS = "ALTER TABLE runs ADD COLUMN owner TEXT NOT NULL DEFAULT '';"

#: What people write on runs; the check that a run stepped aside for until it goes on, and how long it had worked then.
_LABELS_AND_ASIDES = """
ALTER TABLE runs ADD COLUMN note TEXT NOT NULL DEFAULT '';
ALTER TABLE runs ADD COLUMN starred INTEGER NOT NULL DEFAULT 0 CHECK (starred IN (0, 1));
ALTER TABLE runs ADD COLUMN aside_for INTEGER;
ALTER TABLE runs ADD COLUMN aside_at_s REAL;
"""

#: run_id refers to nothing, because a conversation outlives its run. words: what it is found by, in small letters.
_CONVERSATIONS = """
CREATE TABLE conversations (
    id INTEGER PRIMARY KEY AUTOINCREMENT,  -- never reused: addresses carry it
    owner TEXT NOT NULL DEFAULT '',
    title TEXT NOT NULL,
    created_at REAL NOT NULL CHECK (created_at BETWEEN 0 AND 8589934592),  -- a date can be made of it
    updated_at REAL NOT NULL CHECK (updated_at BETWEEN 0 AND 8589934592),
    run_id INTEGER,
    saves INTEGER NOT NULL DEFAULT 1,
    words TEXT NOT NULL DEFAULT '',
    models TEXT NOT NULL,
    turns TEXT NOT NULL
) STRICT;
CREATE INDEX conversations_by_time ON conversations (owner, updated_at, id);
"""

#: A vote says which of two answers a person found better without knowing whose they were; showing: what may be voted on
#: once. Answers to the deck of prompts are kept, so that a run answers it once. Both go with their run.
_VOTES = """
CREATE TABLE votes (
    id INTEGER PRIMARY KEY,
    showing TEXT NOT NULL,
    run_id INTEGER NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
    owner TEXT NOT NULL DEFAULT '',
    deck_id TEXT NOT NULL,  -- the prompt's in the deck; '' of a person's own question
    prompt TEXT NOT NULL,
    settings TEXT NOT NULL,
    seed INTEGER NOT NULL,
    shown_a TEXT NOT NULL,
    shown_b TEXT NOT NULL,
    answer_a TEXT NOT NULL,
    answer_b TEXT NOT NULL,
    choice TEXT NOT NULL CHECK (choice IN ('A', 'B', 'tie', 'bad', 'same', 'skipped')),
    at REAL NOT NULL,
    UNIQUE (showing, owner)
) STRICT;
CREATE INDEX votes_by_run ON votes (run_id, id);

CREATE TABLE deck_answers (
    run_id INTEGER NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
    precision TEXT NOT NULL,
    question TEXT NOT NULL,  -- digest of the prompt and of all that its answer is drawn with
    text TEXT NOT NULL,
    finish TEXT NOT NULL,
    PRIMARY KEY (run_id, precision, question)
) STRICT, WITHOUT ROWID;
"""

#: Scripts that bring a database from version n to n + 1. Released ones never change.
MIGRATIONS: tuple[str, ...] = (
    *(_TABLES, _PROVENANCE, _GPU_MEMORY, _AS_SERVED),
    *(_OWNERS, _LABELS_AND_ASIDES, _CONVERSATIONS, _VOTES),
)
