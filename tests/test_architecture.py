"""The rules that keep the house in order, checked on the source itself.

Most tests read the syntax trees of the product's modules; each rule is also shown a planted violation. A few tests
start a fresh interpreter. None needs a model, a device or a network.
"""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.support import house
from tests.support.house import House

ROOT = Path(__file__).resolve().parent.parent
HOUSE = House(ROOT)
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 80
#: Modules of upq that may stand in no wing, `__init__` and `__main__` among them.
MAX_OWN_MODULES = 9

_MODELS = "kernels version errors units files killable context machine config layers models"
_ALGORITHMS = f"{_MODELS} decode artifact data training evaluation quantize"
#: What each wing may import when it runs, itself aside: wings, modules of upq that stand in none, or one module of a
#: wing, such as artifact.format. `version` is the face of upq.
MAY_IMPORT = {
    "kernels": "",
    "version": "",
    "errors": "",
    "units": "",
    "files": "",
    "killable": "",
    "context": "",
    "machine": "kernels version",
    "config": "errors",
    "layers": "kernels",
    "models": "errors files killable layers",
    "decode": "kernels errors layers models",
    "artifact": "kernels errors machine config layers models",
    "data": "errors files context config models decode",
    "training": "kernels errors context config layers models data",
    "evaluation": "errors files killable config models decode data",
    "compare": "errors files units models decode evaluation",
    "hf": "kernels errors files layers models artifact",
    "export": "kernels errors files config layers models decode artifact hf",
    "quantize": _ALGORITHMS,
    "store": "errors files units config artifact.format",
    "jobs": f"{_ALGORITHMS} store export compare",
    "serve": "version errors files config decode jobs store",
    "cli": f"{_ALGORITHMS} store jobs export compare serve",
    "ui": "config context decode evaluation compare export quantize.estimate quantize.ready jobs store errors files"
    " machine units",
    "bench": f"{_ALGORITHMS} store jobs serve cli export compare",
    "app": f"{_ALGORITHMS} store jobs serve ui",
}
#: What the package of a tab may import of ui, itself aside; results shows the checks' score table as well.
_SHARED_BY_TABS = {"ui.html", "ui.app_state", "ui.drafts", "ui.header", "ui.requests"}
TABS_MAY_IMPORT = {
    "quantize": _SHARED_BY_TABS,
    "chat": _SHARED_BY_TABS,
    "checks": _SHARED_BY_TABS,
    "export": _SHARED_BY_TABS,
    "results": _SHARED_BY_TABS | {"ui.checks"},
}
#: The modules that may speak SQL, those that may contain HTML, and those that may know the interface.
STORE = re.compile(r"upq\.store(\.\w+)?")
RENDERERS = re.compile(r"ui\.html\.(markup|parts|charts|run_panel)|ui\.\w+\.render(_\w+)?")
INTERFACE = re.compile(r"(ui|app|bench)(\..+)?")
#: Home folders of people's machines; /home/user is where a hosted Space runs.
MACHINE_PATH = re.compile(r"/(?:root|Users/\w+|home/(?!user/)\w[\w.-]*)/")

#: Rule -> its check.
RULES: dict[str, Callable[[House], list[str]]] = {
    "a wing imports what the table grants": partial(house.broken_walls, table=MAY_IMPORT),
    "tabs do not import each other": partial(house.broken_tab_walls, table=TABS_MAY_IMPORT),
    "a face is the way in": house.ways_around_a_face,
    "a face hides no module": house.shadowed_modules,
    "no circles": house.circles,
    "algorithms know no interface": partial(
        house.users_of, roots={"gradio", "ui", "app"}, outside=INTERFACE
    ),
    "only the store has a database driver": partial(
        house.users_of, roots=house.DATABASE_DRIVERS, outside=STORE
    ),
    "only the store speaks SQL": partial(house.sql_outside, store=STORE),
    "only renderers contain HTML": partial(house.html_outside, renderers=RENDERERS),
}
#: Rule -> files of a small house that breaks it, and what the complaint has to name.
PLANTS: list[tuple[str, dict[str, str], str]] = [
    (
        "a wing imports what the table grants",
        {
            "upq/training/distill.py": "from upq.evaluation.mmlu import exam",
            "upq/evaluation/mmlu.py": "",
        },
        "training may not import upq.evaluation.mmlu",
    ),
    (
        "a wing imports what the table grants",
        {
            "upq/store/database.py": "def late():\n    from upq.quantize import work",
            "upq/quantize/__init__.py": "from upq.quantize.stages import work",
            "upq/quantize/stages.py": "work = 1",
        },
        "store may not import upq.quantize.stages",
    ),
    (
        "a wing imports what the table grants",
        {"upq/store/lease.py": "from upq.artifact import assembly", "upq/artifact/assembly.py": ""},
        "store may not import upq.artifact.assembly",
    ),
    (
        "a wing imports what the table grants",
        {"upq/errors.py": "import upq.files", "upq/files.py": ""},
        "errors may not import upq.files",
    ),
    (
        "tabs do not import each other",
        {"ui/chat/tab.py": "from ui.quantize import form", "ui/quantize/form.py": ""},
        "tab chat may not import ui.quantize.form",
    ),
    (
        "a face is the way in",
        {
            "upq/data/dataset.py": "from upq.models.loading import load",
            "upq/models/__init__.py": "from upq.models.loading import load",
            "upq/models/loading.py": "load = 1",
        },
        "upq.models hands on load",
    ),
    (
        "a face is the way in",
        {
            "upq/models/__init__.py": "from upq.models.loading import load",
            "upq/models/loading.py": "load = 1",
            "upq/models/shape.py": "from upq.models import load",
        },
        "inside of upq.models import the sibling",
    ),
    (
        "a face hides no module",
        {
            "upq/training/__init__.py": "from upq.training.distill import distill",
            "upq/training/distill.py": "distill = 1",
        },
        "upq.training hands on distill",
    ),
    (
        "no circles",
        {
            "upq/layers/grid.py": "from upq.layers import fake",
            "upq/layers/fake.py": "import upq.layers.grid",
        },
        "upq.layers.grid",
    ),
    (
        "algorithms know no interface",
        {"upq/quantize/pipeline.py": "def show():\n    import gradio"},
        "imports gradio",
    ),
    (
        "only the store has a database driver",
        {"upq/training/teacher.py": "from sqlite_utils import Database"},
        "imports sqlite_utils",
    ),
    (
        "only the store speaks SQL",
        {"upq/jobs/worker.py": "query = 'SELECT id FROM run'"},
        "SELECT id",
    ),
    ("only renderers contain HTML", {"ui/chat/turn.py": "mark = '<b>bold</b>'"}, "<b>bold"),
]


def test_the_product_is_found() -> None:
    assert {"upq", "upq.errors", "upq.config.schema"} <= HOUSE.modules.keys()


@pytest.mark.parametrize("rule", RULES)
def test_the_house_keeps_the_rule(rule: str) -> None:
    assert not RULES[rule](HOUSE)


@pytest.mark.parametrize(("rule", "files", "named"), PLANTS, ids=lambda one: str(one)[:40])
def test_a_planted_violation_is_found(
    rule: str, files: dict[str, str], named: str, tmp_path: Path
) -> None:
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        for package in path.relative_to(tmp_path).parents:
            if package.name and not (tmp_path / package / "__init__.py").exists():
                (tmp_path / package / "__init__.py").touch()
    assert any(named in complaint for complaint in RULES[rule](House(tmp_path)))


def test_every_rule_is_shown_a_violation() -> None:
    assert {rule for rule, _, _ in PLANTS} == RULES.keys()


def test_every_module_stands_in_a_wing() -> None:
    lost = sorted(module for module in HOUSE.modules if HOUSE.wing(module) not in MAY_IMPORT)
    assert not lost, f"give these modules a wing, or a line in MAY_IMPORT: {lost}"


def test_few_modules_of_upq_stand_in_no_wing() -> None:
    assert len(list((ROOT / "upq").glob("*.py"))) <= MAX_OWN_MODULES


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
    assert house.looks_like_sql(text) is expected


def test_files_are_short_enough_to_read() -> None:
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for path in HOUSE.modules.values()
    }
    too_long = {name: lines for name, lines in lengths.items() if lines > MAX_FILE_LINES}
    assert not too_long, f"files above {MAX_FILE_LINES} lines: {too_long}"


def test_functions_are_short_enough_to_see_whole() -> None:
    too_long = [
        f"{HOUSE.place(module, node.lineno)} {node.name} has {node.end_lineno - node.lineno + 1} lines"
        for module, path in HOUSE.modules.items()
        for node in ast.walk(HOUSE.tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno + 1 > MAX_FUNCTION_LINES
    ]
    assert not too_long, "\n".join(too_long)


def test_every_module_says_what_it_is_for() -> None:
    files = [*HOUSE.modules.values(), *sorted((ROOT / "tests").rglob("*.py"))]
    silent = [
        str(path.relative_to(ROOT)) for path in files if not ast.get_docstring(HOUSE.tree(path))
    ]
    assert not silent, f"no module docstring: {silent}"


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_package_that_shadows_our_kernels_is_not_installed() -> None:
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.distribution("kernels")


def test_importing_the_product_does_nothing_visible() -> None:
    has_triton = importlib.util.find_spec("triton") is not None
    names = [
        module
        for module in HOUSE.modules
        if module.split(".")[0] in {"upq", "kernels"}
        and (has_triton or not module.startswith("kernels.gpu"))
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
