"""A worker of several processes: `python -m upq run --processes 2` starts it through `accelerate launch`.

The main process is an ordinary worker. The others wait until it comes to a stage that all of them do; then they
go the run's own way over its checkpoints and stored answers to that stage, help, and wait again. They write nothing.
"""

from __future__ import annotations

import argparse
import signal
import sys
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import PartialState

from upq.config import RunConfig
from upq.context import SilentContext
from upq.jobs.worker import leave, worker_main
from upq.quantize import pipeline
from upq.store import Store, data_dir, open_store
from upq.training import parallel

#: How long processes wait for each other: the stages that only one of them does may take days.
PATIENCE = timedelta(days=30)


def command(folder: Path, processes: int) -> list[str]:
    """What starts such a worker on a data folder of this machine."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"]
    layout = ["--num_processes", str(processes), "--num_machines", "1", "--main_process_port", "0"]
    plain = ["--mixed_precision", "no", "--dynamo_backend", "no"]
    return [*launcher, *layout, *plain, "-m", "upq.jobs.distributed", "--data-dir", str(folder)]


def main() -> None:
    """One of the processes; ends when the queue is empty or one run is done."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data-dir")
    folder = data_dir(parser.parse_args().data_dir)
    state = join()
    if state.is_main_process:
        try:
            worker_main(folder, once=True)
        finally:
            parallel.from_main(None)
    else:
        _help(open_store(folder))
    state.destroy_process_group()
    leave()


def join() -> PartialState:
    """Meet the other processes that `accelerate launch` started: over NCCL where there are GPUs, else over gloo."""
    return PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)


def _help(store: Store) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):  # the main process says when it is over
        signal.signal(number, signal.SIG_IGN)
    while (call := parallel.from_main()) is not None:
        context = SilentContext(Path(call["checkpoints"]), store.cached_answers)
        try:
            pipeline.run_quantization(RunConfig.from_json(call["config"]), context)
        except parallel.NoLongerNeeded:
            continue


if __name__ == "__main__":
    main()
