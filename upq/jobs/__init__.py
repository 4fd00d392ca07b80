"""Runs in the background: the worker, who keeps it alive, and the models that are served meanwhile."""

from upq.jobs.follow import Say, check, run_and_wait, summary, vet
from upq.jobs.served import Models, Served
from upq.jobs.supervisor import Supervisor
from upq.jobs.worker import worker_main

__all__ = [
    "Models",
    "Say",
    "Served",
    "Supervisor",
    "check",
    "run_and_wait",
    "summary",
    "vet",
    "worker_main",
]
