"""The documentation says what the code does: settings, errors, commands, files, links and named tests."""

from __future__ import annotations

import argparse
import ast
import re
from pathlib import Path

import pytest

from scripts.make_settings_doc import settings_doc
from ui.report import command_line
from upq.cli.parser import parser
from upq.config import PRESET_WORDS, PRESETS, settings

ROOT = Path(__file__).resolve().parent.parent
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
#: Every command has these; docs/cli.md names them once, above its sections.
COMMON = {"--help", "--data-dir"}
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


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


def test_every_error_code_is_explained() -> None:
    assert len(raised_codes()) > 30
    assert raised_codes() <= documented_codes(), raised_codes() - documented_codes()


def test_every_explained_error_code_exists() -> None:
    assert documented_codes() <= string_constants(), documented_codes() - string_constants()


def test_the_settings_page_is_the_generated_one() -> None:
    message = "run: python -m scripts.make_settings_doc > docs/settings.md"
    assert read("docs/settings.md") == settings_doc(), message


def test_every_setting_is_on_the_settings_page() -> None:
    rows = re.findall(r"^\| `([\w.]+)` \|", read("docs/settings.md"), re.MULTILINE)
    assert rows == [path for path, _ in settings()]


def test_every_setting_that_a_page_names_exists() -> None:
    known = {path for path, _ in settings()}
    known |= {path.rpartition(".")[0] + ".*" for path in known}
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        named = set(re.findall(r"\b(?:model|data|int4|int2|measure)(?:\.[a-z_]+)+(?:\.\*)?", text))
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


def tree_entries() -> list[str]:
    (tree,) = re.findall(
        r"^```text\n(.*?)^```", read("docs/architecture.md"), re.MULTILINE | re.DOTALL
    )
    return [line.split()[0] for line in tree.splitlines()]


def test_the_tree_names_only_what_exists_and_each_once() -> None:
    entries = tree_entries()
    missing = [name for name in entries if not (ROOT / name).exists()]
    assert not missing, missing
    assert len(entries) == len(set(entries))


def test_every_module_of_the_product_is_in_the_tree() -> None:
    modules = {
        path.relative_to(ROOT).as_posix()
        for package in ("upq", "kernels", "ui")
        for path in (ROOT / package).rglob("*.py")
    }
    assert modules <= set(tree_entries()), modules - set(tree_entries())


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings_that_exist(page: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", page.read_text(encoding="utf-8"))):
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
