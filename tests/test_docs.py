"""The documentation says what the code does: settings, errors, commands, names, paths, links and named tests."""

from __future__ import annotations

import argparse
import ast
import re
from functools import cache
from pathlib import Path

import pytest

from scripts.make_api_doc import api_doc
from scripts.make_settings_doc import settings_doc
from tests.test_architecture import MAY_IMPORT
from ui.report import command_line
from upq.cli.parser import parser
from upq.config import PRESET_WORDS, PRESETS, settings

ROOT = Path(__file__).resolve().parent.parent
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
#: Every command has these; docs/cli.md names them once, above its sections.
COMMON = {"--help", "--data-dir"}
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
#: The changelog tells of the past, where things had other names.
LIVING_PAGES = [page for page in PAGES if page.name != "CHANGELOG.md"]
#: Columns of prose; tables and code may be wider.
WIDTH = 120
#: All but the two pages of figures, whose lines are older than the rule.
PACKAGES = {"upq", "kernels", "ui", "bench", "scripts", "tests"}
#: What follows the point in names of files that begin like a package: upq.db, kernels.json.
FILE_ENDINGS = {"db", "json", "svg"}
DOTTED = re.compile(r"(?<![\w./-])[a-z]+(?:\.[A-Za-z_]\w*)+")
#: A path from the root of the repository; one that begins elsewhere, such as build/docs, has something before it.
PATH = re.compile(
    r"(?<![\w./:*-])(?:upq|kernels|ui|bench|scripts|tests|docs|\.ci|\.github)/[\w./*-]*"
)
ROOT_FILE = re.compile(
    r"(?<![\w./:*-])(?:app\.py|Makefile|LICENSE|pyproject\.toml|(?:requirements|constraints|packages)[\w-]*\.txt)"
)


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def product_trees() -> list[ast.Module]:
    files = [*(ROOT / "upq").rglob("*.py"), *(ROOT / "ui").rglob("*.py"), ROOT / "app.py"]
    return [ast.parse(path.read_text(encoding="utf-8")) for path in files]


def raised_codes() -> set[str]:
    """First arguments of UserError(...) that are text."""
    calls = [one for tree in product_trees() for one in ast.walk(tree) if isinstance(one, ast.Call)]
    named = [one for one in calls if ast.unparse(one.func).split(".")[-1] == "UserError"]
    firsts = [one.args[0] for one in named if one.args]
    return {str(one.value) for one in firsts if isinstance(one, ast.Constant)}


def string_constants() -> set[str]:
    nodes = [one for tree in product_trees() for one in ast.walk(tree)]
    return {one.value for one in nodes if isinstance(one, ast.Constant) and type(one.value) is str}


def documented_codes() -> set[str]:
    return set(re.findall(r"^\| `(\w+)` \|", read("docs/errors.md"), re.MULTILINE))


@cache
def source_words() -> set[str]:
    """Every word of the repository's source files, and of their names."""
    endings = {".py", ".c", ".h", ".sh", ".toml", ".txt", ".css", ".jsonl"}
    files = [path for name in PACKAGES for path in (ROOT / name).rglob("*")]
    files = [path for path in [*files, *ROOT.glob("*")] if path.suffix in endings]
    texts = [f"{path.name} {path.read_text(encoding='utf-8')}" for path in files]
    return {word for text in texts for word in re.findall(r"\w+", text)}


def test_every_error_code_is_explained() -> None:
    assert len(raised_codes()) > 30
    assert raised_codes() <= documented_codes(), raised_codes() - documented_codes()


def test_every_explained_error_code_exists() -> None:
    assert documented_codes() <= string_constants(), documented_codes() - string_constants()


def test_the_settings_page_is_the_generated_one() -> None:
    assert read("docs/settings.md") == settings_doc(), "run: make fix"


def test_the_api_page_is_the_generated_one() -> None:
    assert read("docs/api.md") == api_doc(), "run: make fix"


def test_every_setting_is_on_the_settings_page() -> None:
    rows = re.findall(r"^\| `([\w.]+)` \|", read("docs/settings.md"), re.MULTILINE)
    assert rows == [path for path, _ in settings()]


def test_every_setting_that_a_page_names_exists() -> None:
    known = {path for path, _ in settings()}
    known |= {path.rpartition(".")[0] + ".*" for path in known}
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        named = set(
            re.findall(r"(?<![\w.])(?:model|data|int4|int2|measure)(?:\.[a-z_]+)+(?:\.\*)?", text)
        )
        named = {one for one in named if not one.endswith((".md", ".py", ".json"))}
        assert named <= known, f"{page.name}: {named - known}"


def command_flags() -> dict[str, set[str]]:
    """Title of a section of docs/cli.md -> the flags of that command."""
    actions = parser()._actions
    (commands,) = [one for one in actions if isinstance(one, argparse._SubParsersAction)]
    found = {
        f"python -m upq {name}": {flag for one in parser._actions for flag in one.option_strings}
        for name, parser in commands.choices.items()
    }
    reported = {flag for one in command_line()._actions for flag in one.option_strings}
    found["python -m ui.report"] = reported
    found = {name: {flag for flag in flags if flag != "-h"} for name, flags in found.items()}
    calls = [one for one in ast.walk(ast.parse(read("app.py"))) if isinstance(one, ast.Call)]
    added = [ast.literal_eval(one.args[0]) for one in calls if _is_add_argument(one)]
    return found | {"python app.py": {*added, "--help"}}


def _is_add_argument(call: ast.Call) -> bool:
    return isinstance(call.func, ast.Attribute) and call.func.attr == "add_argument"


def documented_flags() -> dict[str, set[str]]:
    """Title of a section -> the flags in its table."""
    sections = re.split(r"^## ", read("docs/cli.md"), flags=re.MULTILINE)[1:]
    return {
        section.partition("\n")[0]: set(re.findall(r"^\| `(--[\w-]+)", section, re.MULTILINE))
        for section in sections
    }


def test_every_command_and_flag_is_on_the_command_line_page_and_no_other() -> None:
    real = {title: flags - COMMON for title, flags in command_flags().items()}
    assert {title: flags - COMMON for title, flags in documented_flags().items()} == real
    assert "--data-dir" in documented_flags()["python app.py"]


def test_the_readme_names_the_flags_of_the_app() -> None:
    named = set(re.findall(r"--[\w-]+", read("README.md")))
    assert command_flags()["python app.py"] - {"--help"} <= named


@pytest.mark.parametrize("page", ["README.md", "docs/cli.md"])
def test_every_preset_is_described_in_the_words_of_the_program(page: str) -> None:
    assert PRESET_WORDS.keys() == set(PRESETS)
    for name, words in PRESET_WORDS.items():
        assert re.search(rf"`{name}`( \(default\):|:| \|) {re.escape(words)}", read(page)), name


def prose(page: Path) -> str:
    """The text of a page without its blocks of code."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def bindings(body: list[ast.stmt]) -> dict[str, list[ast.stmt]]:
    """Names that statements define or import -> the statements inside, which only a class has."""
    found: dict[str, list[ast.stmt]] = {}
    for node in body:
        if isinstance(node, ast.ClassDef):
            found[node.name] = node.body
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found[node.name] = []
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {alias.asname or alias.name: [] for alias in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [name for target in targets for name in ast.walk(target)]
            found |= {name.id: [] for name in names if isinstance(name, ast.Name)}
    return found


def is_defined(dotted: str) -> bool:
    """Whether a dotted name is a package, a module, or a name inside of one."""
    folder, names = ROOT, dotted.split(".")
    while names and (folder / names[0]).is_dir():
        folder /= names.pop(0)
    path = folder / "__init__.py"
    if names and (folder / f"{names[0]}.py").is_file():
        path = folder / f"{names.pop(0)}.py"
    if not names:
        return True
    body = ast.parse(path.read_text(encoding="utf-8")).body if path.is_file() else []
    for name in names:
        defined = bindings(body)
        if name not in defined:
            return False
        body = defined[name]
    return True


def named_modules(text: str) -> set[str]:
    """Dotted names of our packages in a text, also those that its lines of Python import."""
    imported = re.findall(r"^from ([\w.]+) import (\w[\w, ]*)$", text, re.MULTILINE)
    names = {f"{base}.{name.split()[0]}" for base, inside in imported for name in inside.split(",")}
    names |= set(DOTTED.findall(text))
    ours = {name for name in names if name.split(".")[0] in PACKAGES}
    return {name for name in ours if name.split(".")[1] not in FILE_ENDINGS}


def named_paths(text: str) -> set[str]:
    """Paths of this repository in a text, patterns among them."""
    found = {path.rstrip("./") for path in PATH.findall(text)}
    return found | {name for name in ROOT_FILE.findall(text) if "/" not in name}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_prose_is_narrow_enough_to_read(page: Path) -> None:
    lines = [line for line in prose(page).splitlines() if not line.startswith(("|", "    "))]
    too_wide = [line for line in lines if len(line) > WIDTH]
    assert not too_wide, too_wide


@pytest.mark.parametrize("page", LIVING_PAGES, ids=lambda page: page.name)
def test_every_module_that_a_page_names_exists(page: Path) -> None:
    named = named_modules(page.read_text(encoding="utf-8"))
    missing = sorted(name for name in named if not is_defined(name))
    assert not missing, missing


@pytest.mark.parametrize("page", LIVING_PAGES, ids=lambda page: page.name)
def test_every_path_that_a_page_names_exists(page: Path) -> None:
    named = named_paths(page.read_text(encoding="utf-8"))
    missing = sorted(path for path in named if not any(ROOT.glob(path)))
    assert not missing, missing


@pytest.mark.parametrize("page", LIVING_PAGES, ids=lambda page: page.name)
def test_every_name_in_code_style_occurs_in_the_source(page: Path) -> None:
    spans = re.findall(r"`([A-Za-z_]\w*(?:\.\w+)*)`", prose(page))
    missing = sorted(span for span in spans if not set(span.split(".")) <= source_words())
    assert not missing, missing


def test_a_name_that_is_gone_is_noticed() -> None:
    text = "See `upq.corridor`, upq.errors.NoSuchError,\nupq/corridor.py and ui/render*.py.\n"
    text += "from upq.store import Corridor\n"
    named = named_modules(text)
    assert named == {"upq.corridor", "upq.errors.NoSuchError", "upq.store.Corridor", "upq.store"}
    assert [name for name in named if is_defined(name)] == ["upq.store"]
    paths = named_paths(text)
    assert paths == {"upq/corridor.py", "ui/render*.py"}
    assert not any(list(ROOT.glob(path)) for path in paths)


def readme_tree() -> list[str]:
    """The entries of the README's tree, from top to bottom."""
    (tree,) = re.findall(r"^```text\n(.*?)^```", read("README.md"), re.MULTILINE | re.DOTALL)
    return [line.split()[0].rstrip("/") for line in tree.splitlines()]


def wings() -> set[str]:
    """The wings as the README names them: upq/config, ..., upq/cli."""
    return {path.parent.relative_to(ROOT).as_posix() for path in ROOT.glob("upq/*/__init__.py")}


def test_the_tree_in_the_readme_names_every_wing_once_and_nothing_that_is_not_there() -> None:
    entries = readme_tree()
    assert len(entries) == len(set(entries))
    assert wings() == {entry for entry in entries if re.fullmatch(r"upq/\w+", entry)}
    missing = [entry for entry in entries if not any(ROOT.glob(entry))]
    assert not missing, missing


def test_a_wing_in_the_tree_imports_only_from_lines_above_its_own() -> None:
    order = [entry.removeprefix("upq/") for entry in readme_tree()]
    for place, wing in enumerate(order):
        allowed = {name.split(".")[0] for name in MAY_IMPORT.get(wing, "").split()}
        below = allowed & set(order[place + 1 :])
        assert not below, f"{wing} may import {below}, which stand below it"


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings_that_exist(page: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        if not path.exists() or (anchor and anchor not in anchors(path)):
            broken.append(target)
    assert not broken, broken


def test_every_page_that_the_code_refers_to_exists() -> None:
    named = {name for text in string_constants() for name in re.findall(r"docs/\w+\.md", text)}
    assert "docs/errors.md" in named
    missing = [name for name in sorted(named) if not (ROOT / name).is_file()]
    assert not missing, missing


def test_the_page_of_the_database_has_every_table_and_no_other() -> None:
    created = set(re.findall(r"CREATE TABLE (\w+)", read("upq/store/tables.py")))
    cells = re.findall(r"^\| (`.+?) \|", read("docs/database.md"), re.MULTILINE)
    assert {name for cell in cells for name in re.findall(r"`(\w+)`", cell)} == created


def test_every_promise_names_tests_that_exist() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", read("docs/reliability.md"))
    assert len(named) > 30
    missing = [f"{path}::{name}" for path, name in named if f"def {name}(" not in read(path)]
    assert not missing, missing


def test_every_row_of_promises_names_a_test() -> None:
    rows = re.findall(r"^\| (?!promise|---)(.+) \|$", read("docs/reliability.md"), re.MULTILINE)
    assert rows
    assert all("::test_" in row for row in rows)


def test_the_header_of_the_space_is_complete_and_short_enough() -> None:
    header = read("README.md").split("---\n")[1]
    values = dict(line.split(": ", 1) for line in header.splitlines() if ": " in line)
    assert (ROOT / values["app_file"]).is_file()
    assert (values["sdk"], values["license"]) == ("gradio", "apache-2.0")
    assert f"gradio=={values['sdk_version']}" in read("constraints.txt").split()
    assert len(values["short_description"]) <= 60
