"""All SQL: the queue of runs, what they report and the artifacts they leave, in one SQLite file."""
