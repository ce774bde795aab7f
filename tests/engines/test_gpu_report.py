"""`make gpu` without a GPU: what it says, what it would write, and that it writes nowhere else.

The results here are made up; no GPU has been asked.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from engines import gpu_report, repository
from engines.gpu_report import BEGIN, END, Step

PAGE = f"# Benchmarks\r\n\r\nœ – \t trailing  \n\n{BEGIN}\nold\n{END}\nafter, without an end of line"


@pytest.fixture
def page(tmp_path: Path) -> Path:
    file = tmp_path / "benchmarks.md"
    file.write_bytes(PAGE.encode())
    return file


def step(command: str, content: Any = None, *, errors: str = "", output: str = "") -> dict[str, Any]:
    made = Step(command, 1 if errors else 0, output, errors, 1.5)
    return made._asdict() | {"content": content}


def spread(value: float) -> dict[str, Any]:
    return {"max": value, "p99": value / 2, "mean": value / 4}


def compared() -> dict[str, Any]:
    outputs = {"risk": spread(8e-6) | {"relative": spread(4e-5)}}
    level = {"severity": "high", "enter": 0.5, "changed": 2, "of": 9600}
    return {
        "model": {"name": "vitals"},
        "compared": {"backend": "tensorrt-cuda"},
        "golden": {"outputs": outputs},
        "data": [{"source": "simulated patients", "outputs": outputs, "decisions": [level]}],
    }


def measured(backend: str, speed: float) -> dict[str, Any]:
    def points(rows_per_second: float) -> list[dict[str, Any]]:
        return [
            {
                "batch": size,
                "latency_ms": {"p50": 0.25, "p99": 0.5},
                "rows_per_second": {"median": rows_per_second},
                "to_reference": rows_per_second / 1000,
                "in_flight": {"to_one": 1.75} if rows_per_second > 4000 else None,
            }
            for size in (1, 2)
        ]

    return {
        "model": {"name": "vitals"},
        "machine": {"cpu": "Made-Up CPU"},
        "reference": "onnxruntime",
        "backends": {"onnxruntime": {"points": points(1000)}, backend: {"points": points(speed)}},
    }


RESULTS: dict[str, Any] = {
    "gpus": ["NVIDIA Made-Up, 9.0, 999.1, 1 MiB"],
    "cuda": "99.1",
    "versions": {"torch": "2.1", "onnxruntime": "1.31.1"},
    "commit": "0123456789ab",
    "installs": [step("pip install x", errors="no matching\ndistribution")],
    "tests": [
        step(
            "pytest -m gpu",
            output="FAILED a.py::b\nSKIPPED [2] a.py:1: no\nSKIPPED [3] b.py:2: no\n1 failed, 5 skipped",
        )
    ],
    "builds": [step("riskstream model build vitals", {}), step("build 90", errors="it has no target 90")],
    "comparisons": [step("compare", compared()), step("compare rtx", errors="it has no target 90")],
    "measurements": [
        step("bench 1", measured("tensorrt", 8000)),
        step("bench 2", measured("pytorch-cuda", 2000)),
        step("bench 3", measured("pytorch", 500)),
    ],
}


def test_only_what_lies_between_the_marks_is_written(page: Path) -> None:
    content = gpu_report.read(page)
    gpu_report.write(page, gpu_report.replaced(content, "\nnew – œ\n"))
    head, tail = PAGE.split("old")
    assert page.read_bytes() == f"{head[:-1]}\n\nnew – œ\n\n{tail[1:]}".encode()
    again = gpu_report.replaced(gpu_report.read(page), "old")
    assert again == f"{head[:-1]}\n\nold\n\n{tail[1:]}"


@pytest.mark.parametrize("spoilt", ["", BEGIN, END, f"{END}{BEGIN}", f"{BEGIN}{END}{BEGIN}"])
def test_a_page_without_its_marks_is_refused(spoilt: str) -> None:
    with pytest.raises(ValueError, match="the page needs the lines"):
        gpu_report.replaced(spoilt, "new")


def test_the_section_has_figures_versions_and_refusals_verbatim() -> None:
    lines = gpu_report.section(RESULTS).splitlines()
    assert "- NVIDIA Made-Up, 9.0, 999.1, 1 MiB" in lines
    assert "CUDA of the driver: 99.1. CPU: Made-Up CPU. onnxruntime 1.31.1, torch 2.1." in lines
    assert lines.count("5 skipped: no") == 1
    assert "FAILED a.py::b" in lines
    assert "1 failed, 5 skipped" in lines
    figures = "8.0e-06 | 4.0e-06 | 2.0e-06 | 4.0e-05 | 2.0e-05 | 1.0e-05"
    for source in ("golden", "simulated patients"):
        assert f"| `vitals` | `tensorrt-cuda` | {source} | risk | {figures} |" in lines
    assert (
        "- `vitals` on `tensorrt-cuda`, simulated patients: 2 of 9,600 decisions at `high` changed" in lines
    )
    assert "| `vitals` | `tensorrt` | 1 | 0.25 | 0.5 | 8,000 | 8.0 | 4.00 | 1.75 |" in lines
    assert "| `vitals` | `onnxruntime` | 1 | 0.25 | 0.5 | 1,000 | 1.0 | 2.00 |  |" in lines
    assert sum(line.startswith("| `vitals` | `onnxruntime`") for line in lines) == 1  # once, at a shown size
    assert "riskstream model build vitals" in lines
    assert "no matching\ndistribution" in "\n".join(lines)
    at = lines.index("it has no target 90")
    assert lines[at - 4 : at - 2] == ["- `build 90` (1)", "- `compare rtx` (1)"]
    assert lines.count("it has no target 90") == 1


def test_without_a_gpu_it_says_so_and_ends_well(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(command: Sequence[str]) -> Step:
        assert command[0] == "nvidia-smi", "nothing else is run"
        return Step("nvidia-smi", 9, "NVIDIA-SMI has failed\n", "", 0.1)

    assert gpu_report.main([], run, page) == 0
    assert (
        capsys.readouterr().out == "No NVIDIA GPU here (NVIDIA-SMI has failed): nothing was run or written.\n"
    )
    assert page.read_bytes() == PAGE.encode()


def test_the_command_itself_without_nvidia_smi(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "engines.gpu_report"],
        cwd=gpu_report.ROOT,
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("No NVIDIA GPU here (nvidia-smi: No such file or directory): ")


class Machine:
    """A machine whose commands answer as told: a GPU, runtimes that refuse, one that prints no JSON."""

    def __init__(self) -> None:
        self.commands: list[str] = []

    def __call__(self, command: Sequence[str]) -> Step:
        text = " ".join(command)
        self.commands.append(text)
        output, errors = "{}", ""
        if command[0] == "nvidia-smi":
            output = "Made-Up, 9.0, 999.1, 1 MiB\n" if len(command) > 1 else "| CUDA Version: 99.1 |"
        elif "pip list" in text:
            output = json.dumps([{"name": "torch", "version": "2"}, {"name": "rich", "version": "1"}])
        elif "__version__" in text:
            output = "1.31.1\n"
        elif "onnxruntime-gpu" in text:
            errors = "no wheel"
        elif "compare" in text and "onnxruntime-cuda" in text:
            output = "Failed to load libcudart.so\n{}"
        elif "compare" in text:
            output = json.dumps(compared())
        elif "bench" in text:
            output = json.dumps(measured("pytorch", 500.0))
        return Step(text, 1 if errors else 0, output, errors, 0.1)


def test_what_fails_on_the_way_is_written_down(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_report, "KEPT", tmp_path / "kept" / "gpu.json")
    machine = Machine()
    assert gpu_report.main(["--data", "medmnist:a.npz", "--data", "physionet2012:b"], machine, page) == 0
    written = page.read_text()
    assert "no wheel" in written
    assert "what it printed is no JSON: " in written
    assert "torch 2." in written
    assert "rich 1" not in written
    results = json.loads((tmp_path / "kept" / "gpu.json").read_text())
    assert results["cuda"] == "99.1"
    # onnxruntime-gpu did not install, so that onnxruntime comes back.
    installs = [command.rsplit(" ", 1)[1] for command in machine.commands if "install" in command]
    assert installs[-3:] == ["onnxruntime", "onnxruntime-gpu[cuda,cudnn]==1.31.1", "onnxruntime==1.31.1"]
    assert any("tensorrt-rtx" in command and "--architecture 90" in command for command in machine.commands)
    given = {(c.split()[5], c.split()[-1]) for c in machine.commands if "--data" in c}
    assert given == {
        ("vitals", "physionet2012:b"),
        ("bedside", "physionet2012:b"),
        ("pneumonia", "medmnist:a.npz"),
    }


def test_the_shipped_page_has_its_marks() -> None:
    gpu_report.between(gpu_report.PAGE.read_text())


def test_plans_are_built_compared_and_measured_in_both_precisions() -> None:
    commands: list[list[str]] = []

    def runs(command: Sequence[str]) -> Step:
        commands.append([*command, ""])
        return Step(" ".join(command), 0, "{}", "", 0.1)

    steps = [
        *gpu_report.builds(runs, ["Made-Up, 8.9, 999.1, 1 MiB"]),
        *gpu_report.comparisons(runs, []),
        *gpu_report.measurements(runs, "1"),
    ]

    def asked(verb: str, name: str, backend: str) -> list[tuple[str, str, str]]:
        """Folder of plans, precision and architecture of the commands."""
        chosen = [c for c in commands if c[4] == verb and c[5] == name and c[7] == backend]

        def option(command: list[str], named: str) -> str:
            return command[command.index(named) + 1] if named in command else ""

        return [
            (Path(option(c, "--plans")).name, option(c, "--precision"), option(c, "--architecture"))
            for c in chosen
        ]

    usual = [("plans", "", ""), ("plans", "fp16", "")]
    named = [("plans-named", precision, "") for precision in ("fp32", "fp16")]
    for name in gpu_report.models():
        assert asked("build", name, "tensorrt") == [("plans", "fp32", ""), ("plans", "fp16", "")]
        assert asked("build", name, "tensorrt-rtx")[2:] == [(*which[:2], "89") for which in named]
        assert asked("compare", name, "tensorrt") == usual
        assert asked("compare", name, "tensorrt-rtx") == [*usual, *named]
        assert asked("compare", name, "onnxruntime-cuda") == [("plans", "", "")]
        for backend in ("tensorrt", "tensorrt-rtx"):
            assert asked("bench", name, backend) == usual
    assert len(steps) == len(commands)


def test_what_is_measured_are_the_shipped_models(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RISKSTREAM_MODEL_REPOSITORY", str(tmp_path))
    monkeypatch.setenv("RISKSTREAM_PLANS", str(tmp_path))
    monkeypatch.setenv("RISKSTREAM_BACKEND", "tensorrt")
    commands: list[Sequence[str]] = []

    def runs(command: Sequence[str]) -> Step:
        commands.append(command)
        return Step(" ".join(command), 0, "{}", "", 0.1)

    made = [
        *gpu_report.builds(runs, ["Made-Up, 8.9, 999.1, 1 MiB"]),
        *gpu_report.comparisons(runs, []),
        *gpu_report.measurements(runs, "1"),
    ]
    assert len(made) == len(commands)
    for command in commands:
        assert Path(command[command.index("--repository") + 1]) == repository.SHIPPED
    told = "import os; print([name for name in os.environ if name.startswith('RISKSTREAM')])"
    assert gpu_report.run((sys.executable, "-c", told)).output == "[]\n"


def test_the_speeds_say_what_they_are_multiples_of() -> None:
    text = " ".join(gpu_report.section(RESULTS).split())
    assert "with with" not in text
    assert "Two in flight: rows per second with two batches in flight, as a multiple of one after" in text
    assert "over PyTorch in fp32 on the same device" in text
    assert "beside a plan of fp16 (`-fp16`) that is fp16 against fp32" in text
    assert "| × PyTorch in fp32 |" in text


def test_plans_for_this_architecture_are_told_apart() -> None:
    steps = [step(f"compare --plans build/{gpu_report.NAMED}", compared())]
    lines = gpu_report.section(RESULTS | {"comparisons": steps}).splitlines()
    assert any(
        line.startswith("| `vitals` | `tensorrt-cuda, of a plan for this architecture` | golden")
        for line in lines
    )
