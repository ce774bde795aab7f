"""What every report carries: the machine, the versions, the commit and the command that made it."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def circumstances(packages: Iterable[str]) -> dict[str, Any]:
    """Machine, versions of Python and of the installed ones of `packages`, commit, command."""
    return {
        "machine": {"cpu": _cpu(), "cores": os.cpu_count(), "architecture": platform.machine()},
        "versions": {"python": platform.python_version(), **dict(_versions(packages))},
        "commit": _commit(),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def write(report: dict[str, Any], file: Path) -> None:
    """Write a report as JSON."""
    file.write_text(json.dumps(report, indent=2) + "\n")


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else "unknown"


def _versions(packages: Iterable[str]) -> Iterable[tuple[str, str]]:
    for package in packages:
        try:
            yield package, metadata.version(package)
        except metadata.PackageNotFoundError:
            continue


def _commit() -> str | None:
    """The commit of the checkout, with `-dirty` where its code differs; None outside of one."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*", "--abbrev=12"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
