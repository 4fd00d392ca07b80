"""The product's modules as a graph of imports, and the rules of the house as lists of complaints.

A wing is a package below `upq`, or one of the other top-level packages; it is what the table of the architecture test
names. A face is the `__init__` of a package: the names that others import.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

PACKAGES = ("kernels", "upq", "ui", "bench")
DATABASE_DRIVERS = {"sqlite3", "sqlite_utils"}
SQL_STATEMENT = re.compile(
    r"\s*(SELECT\s.+\sFROM\s|INSERT\s+(OR\s+\w+\s+)?INTO\s|REPLACE\s+INTO\s|UPDATE\s.+\sSET\s"
    r"|DELETE\s+FROM\s|CREATE\s+(TEMP\s+)?(UNIQUE\s+)?(TABLE|INDEX|VIEW|TRIGGER)\s"
    r"|(ALTER|DROP)\s+(TABLE|INDEX|VIEW|TRIGGER)\s|PRAGMA\s+\w+|BEGIN\s+(IMMEDIATE|EXCLUSIVE)"
    r"|WITH\s+(RECURSIVE\s+)?\w+.*\sAS\s*\()",
    re.DOTALL,
)
HTML_TAG = re.compile(
    r"</?(a|b|body|br|button|code|details|div|em|footer|h[1-6]|head|header|html|i|img|input|label"
    r"|li|link|ol|p|pre|script|section|select|small|span|strong|style|summary|svg|table|tbody|td"
    r"|th|thead|tr|ul)[\s/>]",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Import:
    """`from base import name`, or `import base` where name is empty. line: where it stands."""

    base: str
    name: str
    line: int


class House:
    """The modules below a folder that holds `upq` and its neighbours: dotted name -> file."""

    def __init__(self, root: Path) -> None:
        self.root = root
        files = [path for package in PACKAGES for path in sorted((root / package).rglob("*.py"))]
        files += [path for path in [root / "app.py"] if path.exists()]
        self.modules = {self._name(path): path for path in files}
        self._trees: dict[Path, ast.Module] = {}

    def _name(self, path: Path) -> str:
        parts = path.relative_to(self.root).with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    def tree(self, path: Path) -> ast.Module:
        """The syntax tree of a file."""
        if path not in self._trees:
            self._trees[path] = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
        return self._trees[path]

    def place(self, module: str, line: int) -> str:
        """Where something stands, for a complaint."""
        return f"{self.modules[module].relative_to(self.root).as_posix()}:{line}"

    def is_face(self, module: str) -> bool:
        """Whether a module is the `__init__` of a package."""
        return module in self.modules and self.modules[module].name == "__init__.py"

    @cached_property
    def imports(self) -> dict[str, list[Import]]:
        """Every import of a module that happens when it runs, wherever it stands; relative ones resolved."""
        return {module: list(self._imports(module)) for module in self.modules}

    def _imports(self, module: str) -> Iterator[Import]:
        package = module if self.is_face(module) else module.rpartition(".")[0]
        for node in runtime_nodes(self.tree(self.modules[module])):
            if isinstance(node, ast.Import):
                yield from (Import(alias.name, "", node.lineno) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
                yield from (Import(base, alias.name, node.lineno) for alias in node.names)

    @cached_property
    def faces(self) -> dict[str, dict[str, str]]:
        """Face -> the names that it hands on -> the module of its own package that each comes from."""
        found: dict[str, dict[str, str]] = {}
        for module in filter(self.is_face, self.modules):
            names = found.setdefault(module, {})
            for one in self._imports(module):
                if one.base.startswith(f"{module}."):
                    names[one.name] = one.base
        return found

    def target(self, one: Import) -> str:
        """The module that an import is about: behind a face, the one that the name comes from."""
        if f"{one.base}.{one.name}" in self.modules:
            return f"{one.base}.{one.name}"
        return self.faces.get(one.base, {}).get(one.name, one.base)

    def own_imports(self, module: str) -> set[str]:
        """The product's modules that a module imports directly, itself aside."""
        targets = {self.target(one) for one in self.imports[module]}
        return (targets & self.modules.keys()) - {module}

    def package(self, module: str) -> str:
        """The package that a module belongs to; a face belongs to its own."""
        return module if self.is_face(module) else module.rpartition(".")[0]

    def wing(self, module: str) -> str:
        """The name by which the table of the architecture test knows a module's wing."""
        top, _, rest = module.partition(".")
        if top != "upq":
            return top
        first = rest.partition(".")[0]
        return {"": "version", "__main__": "cli"}.get(first, first)


def runtime_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Every node below `node` except what stands under `if TYPE_CHECKING:`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            continue
        yield child
        yield from runtime_nodes(child)


def broken_walls(house: House, table: Mapping[str, str]) -> list[str]:
    """Imports of a wing that the table does not grant; a wing may always import itself."""
    found = []
    for module in house.modules:
        wing = house.wing(module)
        if wing not in table:
            continue
        granted = set(table[wing].split())
        for one in house.imports[module]:
            target = house.target(one)
            theirs = house.wing(target)
            if target not in house.modules or theirs not in table or theirs == wing:
                continue
            if theirs not in granted and target.removeprefix("upq.") not in granted:
                found.append(f"{house.place(module, one.line)}: {wing} may not import {target}")
    return found


def broken_tab_walls(house: House, table: Mapping[str, set[str]]) -> list[str]:
    """Imports of a tab's package from ui that the table does not grant."""
    found = []
    for module in house.modules:
        tab = module.split(".")[1] if module.startswith("ui.") else ""
        if tab not in table:
            continue
        for one in house.imports[module]:
            target = house.target(one)
            unit = ".".join(target.split(".")[:2])
            if target.startswith("ui.") and unit not in {f"ui.{tab}", *table[tab]}:
                found.append(f"{house.place(module, one.line)}: tab {tab} may not import {target}")
    return found


def ways_around_a_face(house: House) -> list[str]:
    """Imports from the inside of a package whose face has the name, and imports of a module's own face."""
    found = []
    for module in house.modules:
        home = house.package(module)
        for one in house.imports[module]:
            where = house.place(module, one.line)
            if one.base == home and one.name in house.faces[home] and module != home:
                found.append(f"{where}: inside of {home} import the sibling, not the face")
            package = house.package(one.base) if one.base in house.modules else ""
            is_inside = package not in ("", one.base) and not f"{home}.".startswith(f"{package}.")
            if is_inside and one.name in house.faces[package]:
                found.append(f"{where}: {package} hands on {one.name}; import it from there")
    return found


def shadowed_modules(house: House) -> list[str]:
    """Faces that hand on a name which hides a module of their package."""
    return [
        f"{face} hands on {name}, which hides its module of that name"
        for face, names in house.faces.items()
        for name, origin in names.items()
        if f"{face}.{name}" in house.modules and origin != face
    ]


def circles(house: House) -> list[str]:
    """The modules of a circle of imports, where there is one."""
    try:
        TopologicalSorter({one: house.own_imports(one) for one in house.modules}).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def users_of(house: House, roots: set[str], outside: re.Pattern[str]) -> list[str]:
    """Modules that import one of the packages `roots` though their names do not match `outside`."""
    return [
        f"{house.place(module, one.line)}: imports {one.base}"
        for module in house.modules
        if not outside.fullmatch(module)
        for one in house.imports[module]
        if one.base.split(".")[0] in roots
    ]


def sql_outside(house: House, store: re.Pattern[str]) -> list[str]:
    """SQL statements in modules whose names do not match `store`."""
    return [
        f"{house.place(module, line)}: {text[:60]!r}"
        for module, path in house.modules.items()
        if not store.fullmatch(module)
        for line, text in text_literals(house.tree(path))
        if looks_like_sql(text)
    ]


def html_outside(house: House, renderers: re.Pattern[str]) -> list[str]:
    """HTML tags in modules whose names do not match `renderers`."""
    return [
        f"{house.place(module, line)}: {text[:60]!r}"
        for module, path in house.modules.items()
        if not renderers.fullmatch(module)
        for line, text in text_literals(house.tree(path))
        if HTML_TAG.search(text)
    ]


def looks_like_sql(text: str) -> bool:
    """True for a statement in capitals or in small letters; `Select one from ...` is English."""
    first = (text.split(maxsplit=1) or [""])[0]
    return (first.isupper() or first.islower()) and bool(SQL_STATEMENT.match(text.upper() + " "))


def text_literals(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and text of every string but docstrings; what an f-string fills in reads `x`."""
    bare = (node.value for node in ast.walk(tree) if isinstance(node, ast.Expr))
    skipped = {id(value) for value in bare if isinstance(value, ast.Constant)}
    for node in (node for node in ast.walk(tree) if id(node) not in skipped):
        if isinstance(node, ast.JoinedStr):
            parts = (p.value if isinstance(p, ast.Constant) else "x" for p in node.values)
            yield node.lineno, "".join(map(str, parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value
