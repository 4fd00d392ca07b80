"""Makes a CPU build of torch behave as if it had one GPU: real numbers in host memory, on the device cuda:0.

It takes a process of its own: `library.load` before anything imports torch, then `install`, which nothing takes back.
It raises where CUDA would: CPU tensors among a GPU's, a CPU generator, `.numpy()`, and anything that waits for the
device while a graph is captured. A captured graph is a tape, whose replay runs the same operators over the same
memory. Triton's kernels run in its interpreter, those for training by their stand-ins; a launch counts as one operator.

What it cannot show: races between streams, what compiled kernels and cuBLAS compute, what a GPU's memory holds beside
tensors, speed. Unlike CUDA it computes also while it captures.
"""

from __future__ import annotations

import contextlib
import ctypes
import inspect
import os
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from tests.support.simulated_gpu import library
from tests.support.simulated_gpu.stand_ins import STAND_INS

NAME = "Simulated"
#: As an H100, except for the cache, which is too small to make a benchmark multiply by many copies of a weight.
TOTAL_MEMORY, CACHE_BYTES, PROCESSORS, CAPABILITY = 80 << 30, 1 << 10, 132, (9, 0)

_here = threading.local()
_launching = threading.RLock()
#: Not empty while `interpreted` is in use.
_interprets: list[bool] = []


def install() -> None:
    """Give torch its simulated GPU. Raises BuildError where the C++ half cannot be had."""
    os.environ["TRITON_INTERPRET"] = "1"
    loaded = library.load()
    for name, value in _torch_cuda(loaded).items():
        setattr(torch.cuda, name, value)
    setattr(torch._C, "_cuda_getDevice", lambda: 0)  # noqa: B010  what functions imported before go on to ask
    torch.storage.UntypedStorage.clone = _clone_storage
    torch.storage.UntypedStorage.cpu = _storage_on_host
    _interpret(loaded)


def operators() -> int:
    """How many operators have run on the simulated GPU, each launch of a Triton kernel as one."""
    return library.load().simulated_operators()


def _torch_cuda(loaded: ctypes.CDLL) -> dict[str, Any]:
    """What takes the place of functions and classes of torch.cuda."""

    def mem_get_info(*_: Any) -> tuple[int, int]:
        return TOTAL_MEMORY - loaded.simulated_allocated(), TOTAL_MEMORY

    @contextlib.contextmanager
    def graph(graph: _Graph, pool: Any = None, stream: Any = None, **_: Any) -> Iterator[None]:
        with _capturing(loaded, graph), _Recorder(graph):
            yield

    generator = torch.Generator("cuda")  # the first one is the default one
    properties = SimpleNamespace(
        name=NAME,
        total_memory=TOTAL_MEMORY,
        L2_cache_size=CACHE_BYTES,
        multi_processor_count=PROCESSORS,
        major=CAPABILITY[0],
        minor=CAPABILITY[1],
    )
    return {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "is_bf16_supported": lambda *_, **__: True,
        "is_current_stream_capturing": lambda: _captured() is not None,
        "synchronize": lambda *_: _wait("torch.cuda.synchronize"),
        "empty_cache": lambda: None,
        "mem_get_info": mem_get_info,
        "memory_allocated": lambda *_: loaded.simulated_allocated(),
        "max_memory_allocated": lambda *_: loaded.simulated_peak(),
        "reset_peak_memory_stats": lambda *_: loaded.simulated_reset_peak(),
        "get_device_name": lambda *_: NAME,
        "get_device_capability": lambda *_: CAPABILITY,
        "get_device_properties": lambda *_: properties,
        "default_generators": (generator,),
        "manual_seed": generator.manual_seed,
        "manual_seed_all": generator.manual_seed,
        "Stream": _Stream,
        "current_stream": _Stream,
        "default_stream": _Stream,
        "stream": contextlib.nullcontext,
        "Event": _Event,
        "device_of": contextlib.nullcontext,
        "CUDAGraph": _Graph,
        "graph": graph,
    }


def _captured() -> _Graph | None:
    """The graph that this thread captures."""
    return getattr(_here, "graph", None)


def _wait(what: str) -> None:
    if _captured() is not None:
        raise RuntimeError(f"simulated GPU: {what} waits for the device while a graph is captured")


@contextlib.contextmanager
def _capturing(loaded: ctypes.CDLL, graph: _Graph | None) -> Iterator[None]:
    """This thread captures the graph; none where it is None."""
    before = _captured()
    _here.graph = graph
    loaded.simulated_capture(graph is not None)
    try:
        yield
    finally:
        _here.graph = before
        loaded.simulated_capture(before is not None)


class _Stream:
    """The one order in which everything happens."""

    device = torch.device("cuda", 0)
    stream_id = device_index = cuda_stream = 0

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def wait_stream(self, other: _Stream) -> None:
        """Everything before has happened."""

    def wait_event(self, event: _Event) -> None:
        """Everything before has happened."""

    def synchronize(self) -> None:
        _wait("a stream")


class _Event:
    """A moment of the host's clock."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.recorded = 0.0

    def record(self, *_: Any) -> None:
        self.recorded = time.perf_counter()

    def synchronize(self) -> None:
        _wait("an event")

    def elapsed_time(self, later: _Event) -> float:
        """Milliseconds."""
        return 1e3 * (later.recorded - self.recorded)


class _Graph:
    """A tape of calls, each with what it gave when it was captured."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.tape: list[tuple[Callable[[], Any], Any]] = []

    def replay(self) -> None:
        """Make every call again; what it gives is written to where the capture had it."""
        if not self.tape:
            raise RuntimeError("simulated GPU: nothing was captured")
        with torch.inference_mode():
            for call, before in self.tape:
                pairs = zip(_tensors(before), _tensors(call()), strict=True)
                for kept, fresh in pairs:
                    if kept.data_ptr() != fresh.data_ptr():
                        kept.copy_(fresh)

    def reset(self) -> None:
        self.tape = []


def _tensors(result: Any) -> list[torch.Tensor]:
    values = result if isinstance(result, (tuple, list)) else [result]
    return [value for value in values if isinstance(value, torch.Tensor)]


class _Recorder(TorchDispatchMode):
    """Puts every operator on a graph's tape; what it launches itself belongs to it."""

    def __init__(self, graph: _Graph) -> None:
        super().__init__()
        self.graph = graph

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        _here.is_recorded = True
        try:
            result = func(*args, **given)
        finally:
            _here.is_recorded = False
        self.graph.tape.append((lambda: func(*args, **given), result))
        return result


def _interpret(loaded: ctypes.CDLL) -> None:
    """Let Triton's interpreter run one kernel at a time, since it patches its language for each, and count it as one
    operator; what it copies to the host and back belongs to it.
    """
    from triton.runtime import interpreter  # noqa: PLC0415  it reads TRITON_INTERPRET

    interpreted = interpreter.GridExecutor.__call__

    @torch.no_grad()
    def run(self: Any, *args: Any, **kwargs: Any) -> None:
        stand_in = None if _interprets else STAND_INS.get(self.fn.__name__)
        if stand_in is None:
            interpreted(self, *args, **kwargs)
            return
        known = inspect.signature(self.fn).parameters
        given = {name: value for name, value in kwargs.items() if name in known}
        stand_in(**inspect.getcallargs(self.fn, *args, **given))

    def launch(self: Any, *args: Any, **kwargs: Any) -> None:
        before = loaded.simulated_operators()
        with _launching, _capturing(loaded, None), _disable_current_modes():
            run(self, *args, **kwargs)
        loaded.simulated_count(1 + before - loaded.simulated_operators())
        graph = _captured()
        if graph is not None and not getattr(_here, "is_recorded", False):
            graph.tape.append((lambda: run(self, *args, **kwargs), None))

    interpreter.GridExecutor.__call__ = launch


@contextlib.contextmanager
def interpreted() -> Iterator[None]:
    """Triton's interpreter runs every kernel, also where there is a stand-in."""
    _interprets.append(True)
    try:
        yield
    finally:
        _interprets.pop()


def _bytes_of(storage: torch.UntypedStorage) -> torch.Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)


def _clone_storage(self: torch.UntypedStorage) -> torch.UntypedStorage:
    return _bytes_of(self).clone().untyped_storage()


def _storage_on_host(self: torch.UntypedStorage) -> torch.UntypedStorage:
    return self if self.device.type == "cpu" else _bytes_of(self).cpu().untyped_storage()
