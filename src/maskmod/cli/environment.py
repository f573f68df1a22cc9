"""What this installation consists of: versions, extras, devices and backends, for a report of a fault."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from typing import Any

__all__ = ["as_text", "environment"]

_EXTRAS = {
    "cli": ("typer", "rich"),
    "viz": ("matplotlib", "rich"),
    "hf": ("transformers",),
    "profile": ("torch-tb-profiler", "tensorboard"),
}


def environment() -> dict[str, Any]:
    """Everything, as JSON can hold it; a package that is absent is None."""
    import torch

    import maskmod
    from maskmod.backends import registry

    names = dict.fromkeys(name for extra in _EXTRAS.values() for name in extra)
    return {
        "maskmod": maskmod.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "processors": os.cpu_count(),
        "devices": ["cpu", *(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))],
        "backends": sorted(registry.names()),
        "packages": {name: _version(name) for name in names},
        "extras": {extra: all(_version(name) for name in needed) for extra, needed in _EXTRAS.items()},
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def as_text(found: dict[str, Any], as_json: bool) -> str:
    """The environment as lines of text, or as JSON."""
    if as_json:
        return json.dumps(found, indent=2)
    lines = []
    for name, value in found.items():
        if name == "extras":
            absent = [extra for extra, present in value.items() if not present]
            value = "all" if not absent else f"without {', '.join(absent)}: pip install 'maskmod[{','.join(absent)}]'"
        elif isinstance(value, dict):
            value = ", ".join(f"{key} {version or 'absent'}" for key, version in value.items())
        elif isinstance(value, list):
            value = ", ".join(value)
        lines.append(f"{name:<11} {value}")
    return "\n".join(lines)
