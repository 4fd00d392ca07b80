"""The Checks tab: suites put to the models of a run."""
