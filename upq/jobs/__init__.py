"""Runs in the background: the worker, who keeps it alive, and the models that are served meanwhile."""

from upq.jobs.follow import Show, check, run_and_wait, summary
from upq.jobs.served import ModelKey, Models, Served, key_of, model_key
from upq.jobs.supervisor import Supervisor
from upq.jobs.turns import Turns, answering, is_busy
from upq.jobs.worker import leave, worker_main

__all__ = [
    "ModelKey",
    "Models",
    "Served",
    "Show",
    "Supervisor",
    "Turns",
    "answering",
    "check",
    "is_busy",
    "key_of",
    "leave",
    "model_key",
    "run_and_wait",
    "summary",
    "worker_main",
]
