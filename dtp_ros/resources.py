"""Where the files beside the code lie: in a checkout, in an ament install, or in a plain venv."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from dtp_ros.errors import ConfigError

NAME = "dtp_ros"


def share_file(relative: str) -> Path:
    """Path of a shipped file such as `config/models/nora.yaml`; raises ConfigError naming where it looked."""
    prefixes = [Path(p) for p in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep) if p]
    roots = [Path(__file__).resolve().parents[1], *(p / "share" / NAME for p in (*prefixes, Path(sys.prefix)))]
    for root in roots:
        if (root / relative).is_file():
            return root / relative
    raise ConfigError(f"{relative} is not installed (looked in {', '.join(map(str, roots))})")


def package_folder(relative: str) -> Path:
    """Folder of data inside the package itself, such as `models/tabletop_weights`; raises ConfigError."""
    folder = Path(__file__).resolve().parent / relative
    if not folder.is_dir():
        raise ConfigError(f"{folder} is not installed")
    return folder
