"""The rules that keep the house in order, checked on the source itself.

Most tests read the syntax trees of the product's modules; a few start a fresh interpreter. None
needs a model, a device or a network.
"""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("kernels", "upq", "ui", "bench")
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 80

#: A module may import from its own line and from the lines above it, never from below.
ORDER = (
    "kernels kernels.*",
    "upq",
    "upq.errors",
    "upq.settings",
    "upq.precision_config",
    "upq.config",
    "upq.presets",
    "upq.context",
    "upq.failures",
    "upq.files",
    "upq.memory",
    "upq.intervals",
    "upq.provenance",
    "upq.quantizers upq.quantizers.*",
    "upq.layers",
    "upq.shared_inputs",
    "upq.structure",
    "upq.forward",
    "upq.offload",
    "upq.parallel",
    "upq.engines upq.engines.*",
    "upq.model_files",
    "upq.model_vet",
    "upq.bundled",
    "upq.gguf_source",
    "upq.conversation",
    "upq.models",
    "upq.sources",
    "upq.generate",
    "upq.reading",
    "upq.own_prompts",
    "upq.data",
    "upq.solvers",
    "upq.streams",
    "upq.initialise",
    "upq.optimizer",
    "upq.fused_norms",
    "upq.blockwise",
    "upq.losses",
    "upq.fixed_codes",
    "upq.targets",
    "upq.curves",
    "upq.distill",
    "upq.checkpoint",
    "upq.artifact",
    "upq.artifact_vet",
    "upq.assembly",
    "upq.evaluate",
    "upq.methods",
    "upq.suite_data",
    "upq.check_finders",
    "upq.check_reasons",
    "upq.checks upq.check_scores",
    "upq.mmlu upq.mmlu_scores",
    "upq.wikitext",
    "upq.check_run upq.check_report",
    "upq.pipeline",
    "upq.store upq.store_*",
    "upq.serve",
    "upq.estimate upq.shape",
    "upq.jobs",
    "upq.worker",
    "upq.shipped",
    "upq.distributed",
    "upq.supervisor",
    "upq.commands",
    "upq.eval_command",
    "upq.cli",
    "upq.__main__",
    "bench bench.*",
    "ui ui.*",
    "app",
)

#: The modules that may speak SQL, and those that may contain HTML.
STORE = re.compile(r"upq\.store(_\w+)?")
RENDERERS = re.compile(r"ui\.(render(_\w+)?|charts|html)")
HTML_TAG = re.compile(
    r"</?(a|b|body|br|button|code|details|div|em|footer|h[1-6]|head|header|html|i|img|input|label"
    r"|li|link|ol|p|pre|script|section|select|small|span|strong|style|summary|svg|table|tbody|td"
    r"|th|thead|tr|ul)[\s/>]",
    re.IGNORECASE,
)
SQL_STATEMENT = re.compile(
    r"\s*(SELECT\s.+\sFROM\s|INSERT\s+(OR\s+\w+\s+)?INTO\s|REPLACE\s+INTO\s|UPDATE\s.+\sSET\s"
    r"|DELETE\s+FROM\s|CREATE\s+(TEMP\s+)?(UNIQUE\s+)?(TABLE|INDEX|VIEW|TRIGGER)\s"
    r"|(ALTER|DROP)\s+(TABLE|INDEX|VIEW|TRIGGER)\s|PRAGMA\s+\w+|BEGIN\s+(IMMEDIATE|EXCLUSIVE)"
    r"|WITH\s+(RECURSIVE\s+)?\w+.*\sAS\s*\()",
    re.DOTALL,
)
#: Home folders of people's machines; /home/user is where a hosted Space runs.
MACHINE_PATH = re.compile(r"/(?:root|Users/\w+|home/(?!user/)\w[\w.-]*)/")


@cache
def sources() -> dict[str, Path]:
    """The product's modules: dotted name -> file."""
    files = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    files += [path for path in [ROOT / "app.py"] if path.exists()]
    return {module_name(path): path for path in files}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def rank(module: str) -> int:
    """The line of ORDER that a module belongs to; one past the last if it has no place."""
    for line, patterns in enumerate(ORDER):
        if any(fnmatch(module, pattern) for pattern in patterns.split()):
            return line
    return len(ORDER)


def runtime_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Every node below `node` except what stands under `if TYPE_CHECKING:`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            continue
        yield child
        yield from runtime_nodes(child)


def imports(module: str) -> set[str]:
    """The full dotted names that a module imports when it runs, relative ones resolved."""
    path = sources()[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found: set[str] = set()
    for node in runtime_nodes(tree(path)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            relative_name = "." * node.level + (node.module or "")
            base = importlib.util.resolve_name(relative_name, package)
            # `from upq import files` is about upq.files; `from upq.files import x` is too.
            modules = {f"{base}.{alias.name}" for alias in node.names} & sources().keys()
            found.update(modules or {base})
    return found


def own_imports(module: str) -> set[str]:
    return imports(module) & sources().keys() - {module}


def docstring_nodes(module: ast.Module) -> set[int]:
    """The ids of the constants that are docstrings or other bare strings."""
    bare = (node.value for node in ast.walk(module) if isinstance(node, ast.Expr))
    return {id(value) for value in bare if isinstance(value, ast.Constant)}


def text_literals(path: Path) -> Iterator[tuple[int, str]]:
    """Line and text of every string but docstrings; what an f-string fills in reads `x`."""
    skipped = docstring_nodes(tree(path))
    for node in (node for node in ast.walk(tree(path)) if id(node) not in skipped):
        if isinstance(node, ast.JoinedStr):
            parts = (p.value if isinstance(p, ast.Constant) else "x" for p in node.values)
            yield node.lineno, "".join(map(str, parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


def looks_like_sql(text: str) -> bool:
    """True for a statement in capitals or in small letters; `Select one from ...` is English."""
    first = (text.split(maxsplit=1) or [""])[0]
    return (first.isupper() or first.islower()) and bool(SQL_STATEMENT.match(text.upper() + " "))


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_product_is_found() -> None:
    assert {"upq", "upq.errors", "upq.config"} <= sources().keys()


def test_every_module_has_a_place_in_the_order() -> None:
    lost = sorted(module for module in sources() if rank(module) == len(ORDER))
    assert not lost, f"give these modules a line in ORDER, at the top of this file: {lost}"


def test_imports_go_one_way() -> None:
    backwards = [
        f"{module} imports {imported}, which stands below it in ORDER"
        for module in sources()
        for imported in own_imports(module)
        if rank(imported) > rank(module)
    ]
    assert not backwards, "\n".join(sorted(backwards))


def test_no_modules_import_each_other_in_a_circle() -> None:
    # CycleError names the modules of the circle.
    TopologicalSorter({module: own_imports(module) for module in sources()}).prepare()


def test_upq_and_kernels_know_nothing_of_the_interface() -> None:
    for module in sources():
        if module.split(".")[0] in {"upq", "kernels"}:
            roots = {name.split(".")[0] for name in imports(module)}
            assert not roots & {"gradio", "ui", "app"}, f"{module} imports the interface"


def test_only_the_store_imports_a_database_driver() -> None:
    for module in sources():
        if not STORE.fullmatch(module):
            roots = {name.split(".")[0] for name in imports(module)}
            assert not roots & {"sqlite3", "sqlite_utils"}, f"{module} talks to the database itself"


def test_only_the_store_contains_sql() -> None:
    found = [
        f"{relative(path)}:{line}: {text[:60]!r}"
        for module, path in sources().items()
        if not STORE.fullmatch(module)
        for line, text in text_literals(path)
        if looks_like_sql(text)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("SELECT id FROM run", True),
        ("update run set state = ?", True),
        ("PRAGMA foreign_keys = ON", True),
        ("Select a model from the list", False),
        ("BEGIN a new run", False),
        ("Update the settings", False),
    ],
)
def test_sql_is_told_from_english(text: str, expected: bool) -> None:
    assert looks_like_sql(text) is expected


def test_only_the_renderers_contain_html() -> None:
    found = [
        f"{relative(path)}:{line}: {text[:60]!r}"
        for module, path in sources().items()
        if not RENDERERS.fullmatch(module)
        for line, text in text_literals(path)
        if HTML_TAG.search(text)
    ]
    assert not found, "\n".join(found)


def test_files_are_short_enough_to_read() -> None:
    lengths = {
        relative(path): len(path.read_text(encoding="utf-8").splitlines())
        for path in sources().values()
    }
    too_long = {name: lines for name, lines in lengths.items() if lines > MAX_FILE_LINES}
    assert not too_long, f"files above {MAX_FILE_LINES} lines: {too_long}"


def test_functions_are_short_enough_to_see_whole() -> None:
    too_long = [
        f"{relative(path)}:{node.lineno} {node.name} has {node.end_lineno - node.lineno + 1} lines"
        for path in sources().values()
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno + 1 > MAX_FUNCTION_LINES
    ]
    assert not too_long, "\n".join(too_long)


def test_every_module_says_what_it_is_for() -> None:
    files = [*sources().values(), *sorted((ROOT / "tests").rglob("*.py"))]
    silent = [relative(path) for path in files if not ast.get_docstring(tree(path))]
    assert not silent, f"no module docstring: {silent}"


def test_the_package_that_shadows_our_kernels_is_not_installed() -> None:
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.distribution("kernels")


def test_importing_the_product_does_nothing_visible() -> None:
    has_triton = importlib.util.find_spec("triton") is not None
    names = [
        module
        for module in sources()
        if module.split(".")[0] in {"upq", "kernels"}
        and (has_triton or not module.startswith("kernels.triton"))
    ]
    code = (
        "import importlib, sys, threading\n"
        "for name in sys.argv[1:]: importlib.import_module(name)\n"
        "assert threading.active_count() == 1, threading.enumerate()\n"
        "torch = sys.modules.get('torch')\n"
        "assert torch is None or not torch.cuda.is_initialized()\n"
    )
    result = run_python(code, *names)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_importing_kernels_loads_nothing_heavy() -> None:
    if "kernels" not in sources():
        pytest.skip("kernels/__init__.py does not exist")
    code = (
        "import sys, kernels; print(sorted({'torch', 'triton', 'transformers'} & {*sys.modules}))"
    )
    result = run_python(code)
    assert result.stdout == "[]\n", result.stdout + result.stderr


def test_no_file_names_a_place_on_somebodys_machine() -> None:
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listing.returncode:
        pytest.skip("this copy is not a git checkout, so there is no list of its files")
    found = []
    for name in filter(None, listing.stdout.split("\0")):
        path = ROOT / name
        text = path.read_bytes().decode("utf-8", errors="ignore") if path.is_file() else ""
        found += [f"{name}: {match.group()}" for match in MACHINE_PATH.finditer(text)]
    assert not found, "\n".join(found)
