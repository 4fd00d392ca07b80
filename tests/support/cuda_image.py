"""Only those packages can be imported that a plain CUDA image has or that scripts/gpu_payload.sh carries to it."""

from __future__ import annotations

import importlib.abc
import importlib.metadata
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import Distribution
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

PAYLOAD = Path(__file__).resolve().parents[2] / "scripts" / "gpu_payload.sh"
#: What a CUDA image with torch and transformers has, itself and what it requires.
IMAGE = ("torch", "triton", "transformers", "accelerate", "pandas", "psutil", "safetensors", "pip")
#: Required by some versions of these and not by others: the image that was lent lacked it.
LACKING = "pydantic"


def carried() -> set[str]:
    """The distributions whose wheels the script carries: with what they require, or alone."""
    text = PAYLOAD.read_text(encoding="utf-8")
    alone, whole = (
        re.findall(rf'^{name}="([^"]*)"', text, re.MULTILINE)[0].split()
        for name in ("packages", "whole")
    )
    return {plain(name) for name in alone} | with_requirements(whole)


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


class _Finder(importlib.abc.MetaPathFinder):
    """Finds what PathFinder does, except for distributions that are not there. missing: their modules."""

    def __init__(self, allowed: set[str], missing: set[str]) -> None:
        self.allowed, self.missing = allowed, missing

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: Any = None
    ) -> ModuleSpec | None:
        is_missing = fullname.partition(".")[0] in self.missing
        return None if is_missing else PathFinder.find_spec(fullname, path, target)

    def find_distributions(self, context: Any) -> Iterator[Distribution]:
        found = PathFinder.find_distributions(context)
        return (one for one in found if plain(one.metadata["Name"]) in self.allowed)


def install() -> None:
    """From here on this process sees no other distribution, neither its modules nor its metadata."""
    allowed = with_requirements(IMAGE) - with_requirements([LACKING]) | carried()
    owners = importlib.metadata.packages_distributions()
    missing = {
        module for module, names in owners.items() if not allowed & {plain(name) for name in names}
    }
    sys.meta_path[sys.meta_path.index(PathFinder)] = _Finder(allowed, missing)
