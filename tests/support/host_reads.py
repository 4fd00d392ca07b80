"""Modes that see where the host reads what a device has computed, so that tests of it need no GPU.

Device "meta" inside of a FakeTensorMode plays a GPU: its tensors have no values, but may be copied to the host.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode


class ToHost(TorchDispatchMode):
    """Adds up the bytes that operators bring from device "meta" to the host."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        came = [one for one in args if isinstance(one, torch.Tensor) and one.device.type == "meta"]
        if came and isinstance(found, torch.Tensor) and found.device.type == "cpu":
            self.bytes += found.nbytes
        return found


class Reads(TorchDispatchMode):
    """Notes the operators with which the host would wait for a device's values."""

    WAITING = ("_local_scalar_dense", "is_nonzero", "nonzero", "equal", "masked_select")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in self.WAITING:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


class Calls(TorchFunctionMode):
    """Notes the calls with which a program reads the values of a tensor, by their names."""

    READING = ("tolist", "item", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if (name := getattr(func, "__name__", "")) in self.READING:
            self.found.append(name)
        return func(*args, **(kwargs or {}))
