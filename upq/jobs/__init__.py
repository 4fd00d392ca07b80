"""Runs in the background: the worker, who keeps it alive, and the models that are served meanwhile."""
