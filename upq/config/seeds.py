"""Seeds of a run's parts, derived from the run's by name."""

from __future__ import annotations

import hashlib

#: Bits of a derived seed: torch and Python take it as it is.
SEED_BITS = 63


def derived_seed(seed: int, name: str) -> int:
    """The seed of the part `name` of what has this seed: neither its other parts nor other seeds come near it."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> (64 - SEED_BITS)
