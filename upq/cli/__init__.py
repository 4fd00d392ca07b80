"""The command line: the same functions that the app calls."""
