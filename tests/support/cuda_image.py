"""Only those packages can be imported that a plain CUDA image has or that scripts/gpu_payload.sh carries to it."""

from __future__ import annotations

import importlib.abc
import importlib.metadata
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import Distribution
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

PAYLOAD = Path(__file__).resolve().parents[2] / "scripts" / "gpu_payload.sh"
#: What a CUDA image with torch and transformers has, itself and what it requires.
IMAGE = ("torch", "triton", "transformers", "accelerate", "pandas", "psutil", "safetensors", "pip")


def carried() -> list[str]:
    """The packages whose wheels the script carries; what they require is not carried with them."""
    (words,) = re.findall(r'^packages="([^"]*)"', PAYLOAD.read_text(encoding="utf-8"), re.MULTILINE)
    return words.split()


def plain(name: str) -> str:
    """The name of a distribution as all its spellings have it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def with_requirements(names: Iterable[str]) -> set[str]:
    """The distributions and all that they require, directly or not, as far as it is installed."""
    found: set[str] = set()
    waiting = [plain(name) for name in names]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        try:
            required = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        found.add(name)
        needed = [Requirement(text) for text in required]
        waiting += [
            plain(one.name)
            for one in needed
            if one.marker is None or one.marker.evaluate({"extra": ""})
        ]
    return found


class _Missing(importlib.abc.MetaPathFinder):
    """Finds none of the modules of distributions that are not there."""

    def __init__(self, modules: set[str]) -> None:
        self.modules = modules

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: Any = None) -> None:
        top = fullname.partition(".")[0]
        if top in self.modules:
            raise ModuleNotFoundError(f"No module named {top!r} in a plain CUDA image", name=top)


def install() -> None:
    """From here on this process sees no other distribution, neither its modules nor its metadata."""
    allowed = with_requirements(IMAGE) | {plain(name) for name in carried()}
    owners = importlib.metadata.packages_distributions()
    missing = {
        module for module, names in owners.items() if not allowed & {plain(name) for name in names}
    }
    discover = Distribution.discover

    def discover_allowed(**context: Any) -> Iterator[Distribution]:
        return (found for found in discover(**context) if plain(found.metadata["Name"]) in allowed)

    Distribution.discover = discover_allowed  # pyright: ignore[reportAttributeAccessIssue]
    sys.meta_path.insert(0, _Missing(missing - set(sys.modules)))
