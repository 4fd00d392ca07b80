"""The story of a run: it sees a context, never the database."""
