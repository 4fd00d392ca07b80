"""How each layer of a model is stored: the grid of its codes, and how many inputs share a scale."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from upq.layers.grid import Grid


@dataclass(frozen=True)
class Form:
    """A grid, and the inputs of a group on it; 0: one group a row."""

    grid: Grid
    group_size: int


@dataclass(frozen=True)
class Forms:
    """The forms of a model's layers by their names: most have the usual one, some one of their own."""

    usual: Form
    own: Mapping[str, Form] = field(default_factory=dict)

    def of(self, name: str) -> Form:
        """The form of a layer."""
        return self.own.get(name, self.usual)

    def below(self, prefix: str) -> Forms:
        """The same, of the layers whose names begin with the prefix, by the rest of their names."""
        own = self.own.items()
        mine = {name.removeprefix(prefix): form for name, form in own if name.startswith(prefix)}
        return Forms(self.usual, mine)
