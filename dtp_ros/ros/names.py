"""Where an arm's own topics are. Launch files read this too, under a Python that may have neither numpy nor torch."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import yaml


def under(arm_namespace: str, name: str) -> str:
    """The topic, service or action `name` of the arm: "/" is the root, "" the node's own namespace."""
    if not arm_namespace or name.startswith("/"):
        return name
    return f"{arm_namespace.rstrip('/')}/{name}"


def arm_namespace(files: Iterable[str], namespace: str) -> str:
    """What the last of some parameter files says to the node `widowx` of a namespace; "" where none says anything."""
    found, full_name = "", "/".join(["", *filter(None, namespace.split("/")), "widowx"])
    for file in files:
        for name, node in (yaml.safe_load(Path(file).read_text(encoding="utf-8")) or {}).items():
            if name in ("/**", "/**/widowx", full_name):
                found = ((node or {}).get("ros__parameters") or {}).get("arm_namespace", found)
    return str(found)
