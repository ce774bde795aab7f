"""`make gpu`: every engine on this machine's NVIDIA GPU, written down in docs/benchmarks.md.

    install what runs plans -> pytest -m gpu -> build, compare, bench every shipped model -> the section "GPU"

Each step is a command of its own, so that a runtime which crashes ends its step alone. What fails is not
fatal: its words are the finding. Where there is no GPU nothing is run and nothing is written.
"""

import argparse
import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]

PAGE = ROOT / "docs" / "benchmarks.md"

KEPT = ROOT / "build" / "gpu.json"

BEGIN, END = "<!-- gpu: begin -->", "<!-- gpu: end -->"
"""What lies between these lines of the page is written by this module."""

PLAN_BACKENDS = ("tensorrt", "tensorrt-rtx")
GPU_BACKENDS = ("onnxruntime-cuda", *PLAN_BACKENDS)
PRECISIONS = ("fp32", "fp16")
NAMED = "plans-named"
"""Folder of the plans for this very architecture: the others would not be loaded beside them."""

ON_CPU = ("onnxruntime", "pytorch")
MEASURED = (*GPU_BACKENDS, "pytorch", "pytorch-cuda")
"""Each is measured beside onnxruntime, the reference, which runs in every one of these commands."""

PACKAGES = re.compile("riskstream|numpy|onnxruntime.*|tensorrt.*|pycuda|torch|nvidia-(cuda-runtime|cudnn).*")
"""Those whose versions decide what is found."""

SHOWN = (1, 16, 32, 64, 128, 512)
"""Batch sizes in the table; build/gpu.json has all."""

MODELS = ROOT / "engines" / "models"
"""The shipped models, whichever the environment names: what is measured is what this page is about."""

LIMIT_S = 3600
"""Seconds for one step. Installing and building take minutes; what takes longer hangs."""


class Step(NamedTuple):
    """A command that was run, and what it said."""

    command: str
    status: int
    output: str
    errors: str
    seconds: float

    @property
    def words(self) -> str:
        """What it said last: a failure's message."""
        return (self.errors or self.output).strip()


Run = Callable[[Sequence[str]], Step]
"""Runs a command to its end, whatever that is."""


def run(command: Sequence[str]) -> Step:
    """Run a command in the checkout, without the settings of a worker that the environment may hold."""
    began = perf_counter()
    env = {name: value for name, value in os.environ.items() if not name.startswith("RISKSTREAM_")}
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=LIMIT_S, check=False
        )
        status, output, errors = done.returncode, done.stdout, done.stderr
    except subprocess.TimeoutExpired:
        status, output, errors = 124, "", f"stopped after {LIMIT_S} s"
    except OSError as error:
        status, output, errors = 127, "", f"{command[0]}: {error.strerror}"
    return Step(_shown(command), status, output, errors, round(perf_counter() - began, 1))


def _shown(command: Sequence[str]) -> str:
    """A command as a person would type it."""
    text = " ".join(command).replace(f"{sys.executable} -m worker.cli", "riskstream")
    return text.replace(f"{sys.executable} -m ", "").replace(f"{ROOT}/", "")


def main(arguments: Sequence[str] | None = None, runs: Run = run, page: Path = PAGE) -> int:
    """The command; 0 unless the page cannot be written."""
    parser = argparse.ArgumentParser(prog="make gpu", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data", action="append", default=[], help="compare on it too: physionet2012:DIR ..."
    )
    parser.add_argument("--seconds", default="1", help="for each backend and batch size of a measurement")
    parser.add_argument("--no-install", action="store_true", help="take what is installed")
    asked = parser.parse_args(arguments)
    gpus = runs(
        ("nvidia-smi", "--query-gpu=name,compute_cap,driver_version,memory.total", "--format=csv,noheader")
    )
    if gpus.status != 0 or not gpus.output.strip():
        print(f"No NVIDIA GPU here ({gpus.words or 'nvidia-smi lists none'}): nothing was run or written.")
        return 0
    content = read(page)
    between(content)
    results = measure(runs, gpus.output.strip().splitlines(), asked)
    KEPT.parent.mkdir(exist_ok=True)
    KEPT.write_text(json.dumps(results, indent=2) + "\n")
    write(page, replaced(content, section(results)))
    print(f"{page} has what was found, {KEPT} all of it")
    return 0


def measure(runs: Run, gpus: list[str], asked: argparse.Namespace) -> dict[str, Any]:
    """Run everything: the machine, the versions, and every step's `_fields`."""
    steps: dict[str, list[Step]] = {
        "installs": [] if asked.no_install else list(told(installs(runs))),
        "tests": list(told([runs((sys.executable, "-m", "pytest", "-m", "gpu", "-rfEs"))])),
        "builds": list(told(builds(runs, gpus))),
        "comparisons": list(told(comparisons(runs, asked.data))),
        "measurements": list(told(measurements(runs, asked.seconds))),
    }
    smi = runs(("nvidia-smi",)).output
    packages = json.loads(runs((sys.executable, "-m", "pip", "list", "--format", "json")).output or "[]")
    return {
        "gpus": gpus,
        "cuda": (re.findall(r"CUDA Version: *([\d.]+)", smi) or ["unknown"])[0],
        "versions": {p["name"]: p["version"] for p in packages if PACKAGES.fullmatch(p["name"])},
        "commit": runs(
            ("git", "describe", "--always", "--dirty", "--exclude=*", "--abbrev=12")
        ).output.strip(),
        **{
            name: [_fields(step, json_of=name not in ("installs", "tests")) for step in found]
            for name, found in steps.items()
        },
    }


def _fields(step: Step, *, json_of: bool) -> dict[str, Any]:
    """The step, with "content": what it printed as JSON, None of a step that failed or prints none."""
    fields = step._asdict() | {"content": None}
    if json_of and step.status == 0:
        try:
            fields |= {"content": json.loads(step.output), "output": ""}
        except ValueError as error:
            fields |= {"status": 65, "errors": f"what it printed is no JSON: {error}"}
    return fields


def told(steps: Iterator[Step] | list[Step]) -> Iterator[Step]:
    """The steps, each with a line for whoever waits."""
    for step in steps:
        print(f"{'ok' if step.status == 0 else 'failed':6} {step.seconds:6.1f} s  {step.command}", flush=True)
        yield step


def installs(runs: Run) -> Iterator[Step]:
    """What runs plans, as far as it installs; onnxruntime-gpu takes onnxruntime's place, or leaves it."""
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet")
    for extra in ("cuda", "tensorrt-rtx", "tensorrt"):
        yield runs((*pip, "-e", f".[{extra}]"))
    version = runs(
        (sys.executable, "-c", "import onnxruntime; print(onnxruntime.__version__)")
    ).output.strip()
    yield runs((sys.executable, "-m", "pip", "uninstall", "--yes", "--quiet", "onnxruntime"))
    taken = runs((*pip, f"onnxruntime-gpu[cuda,cudnn]=={version}"))
    yield taken
    if taken.status != 0:
        yield runs((*pip, f"onnxruntime=={version}"))


def builds(runs: Run, gpus: list[str]) -> Iterator[Step]:
    """Plans of every shipped model; those of TensorRT for RTX also for this very architecture, apart."""
    here = architecture(gpus)
    for name in models():
        for backend in PLAN_BACKENDS:
            for precision in PRECISIONS:
                yield runs(_model("build", name, backend, "--precision", precision))
        for precision in PRECISIONS:
            named = ("--architecture", here, "--precision", precision)
            yield runs(_model("build", name, "tensorrt-rtx", *named, plans=NAMED))


def comparisons(runs: Run, data: Sequence[str]) -> Iterator[Step]:
    """Every backend of the GPU against onnxruntime, on golden inputs and on the data of each model's kind.

    Plans also in fp16; those of TensorRT for RTX for this very architecture without the data.
    """
    for name in models():
        config = json.loads((MODELS / name / "config.json").read_text())
        fitting: list[tuple[str, ...]] = [
            ("--data", source)
            for source in data
            if source.startswith("physionet2012:") != (config["kind"] == "image")
        ]
        for backend, options in _variants(GPU_BACKENDS):
            for more in fitting or [()]:
                yield runs(_model("compare", name, backend, *options, *more))
        for precision in PRECISIONS:
            yield runs(_model("compare", name, "tensorrt-rtx", "--precision", precision, plans=NAMED))


def measurements(runs: Run, seconds: str) -> Iterator[Step]:
    """Every backend, plans also in fp16, and PyTorch's run of the same network, beside onnxruntime."""
    for name in models():
        for backend, options in _variants(MEASURED):
            yield runs(_model("bench", name, backend, *options, "--seconds", seconds))


def _variants(backends: Sequence[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Backends with the options of what they compute in: plans in fp16 too."""
    for backend in backends:
        yield backend, ()
        if backend in PLAN_BACKENDS:
            yield backend, ("--precision", "fp16")


def architecture(gpus: list[str]) -> str:
    """Compute capability of the first GPU, as `--architecture` takes it: `89`."""
    return gpus[0].split(",")[1].strip().replace(".", "")


def models() -> list[str]:
    """Names of the shipped models."""
    return sorted(file.parent.name for file in MODELS.glob("*/config.json"))


def _model(verb: str, name: str, backend: str, *options: str, plans: str = "plans") -> list[str]:
    command = [sys.executable, "-m", "worker.cli", "model", verb, name, "--backend", backend, "--json"]
    return [*command, "--repository", str(MODELS), "--plans", str(ROOT / "build" / plans), *options]


def read(page: Path) -> str:
    """A page, its ends of line as they are."""
    return page.read_bytes().decode()


def write(page: Path, content: str) -> None:
    """A page, its ends of line as they are in its content."""
    page.write_bytes(content.encode())


def between(page: str) -> tuple[int, int]:
    """Where the section's content begins and ends.

    Raises:
        ValueError: the page has not each marker once, in order.
    """
    begin, end = page.find(BEGIN), page.find(END)
    if page.count(BEGIN) != 1 or page.count(END) != 1 or end < begin:
        raise ValueError(f"the page needs the lines {BEGIN} and {END}, once each and in this order")
    return begin + len(BEGIN), end


def replaced(page: str, content: str) -> str:
    """The page with this between its markers, and every other character as it was."""
    begin, end = between(page)
    return f"{page[:begin]}\n\n{content.strip()}\n\n{page[end:]}"


def section(results: dict[str, Any]) -> str:
    """What was found, in Markdown."""
    lines = [f"Commit {results['commit']}, by `make gpu`. GPU, compute capability, driver, memory:", ""]
    lines += [f"- {gpu}" for gpu in results["gpus"]]
    versions = ", ".join(f"{name} {version}" for name, version in sorted(results["versions"].items()))
    cpus = {step["content"]["machine"]["cpu"] for step in results["measurements"] if step["content"]}
    lines += ["", f"CUDA of the driver: {results['cuda']}. CPU: {', '.join(sorted(cpus))}. {versions}.", ""]
    lines += _tests(results["tests"])
    lines += _compared(results["comparisons"])
    lines += _measured(results["measurements"])
    lines += ["### Commands that ran", "", "```"]
    lines += [step["command"] for step in _all(results) if step["status"] == 0] + ["```", ""]
    lines += ["### Refusals, in their own words", ""]
    refused: dict[str, list[str]] = {}
    for step in _all(results):
        if step["status"] != 0:
            words = (step["errors"] or step["output"]).strip().splitlines()[-LAST:]
            refused.setdefault("\n".join(words), []).append(f"- `{step['command']}` ({step['status']})")
    for words, commands in refused.items():
        lines += [*commands, "", "```", words, "```", ""]
    return "\n".join(lines if refused else [*lines, "None."])


LAST = 12
"""Lines of a failure that are shown: its end, where tools say why."""


def _all(results: dict[str, Any]) -> list[dict[str, Any]]:
    names = ("installs", "tests", "builds", "comparisons", "measurements")
    return [step for name in names for step in results[name]]


def _tests(steps: list[dict[str, Any]]) -> list[str]:
    """The last line, every failure, and why tests were skipped, each reason once."""
    said = [line for step in steps for line in step["output"].splitlines()]
    failed = [line for line in said if line.startswith(("FAILED", "ERROR"))]
    skipped: Counter[str] = Counter()
    for line in said:
        if found := re.match(r"SKIPPED \[(\d+)\] \S+: (.*)", line):
            skipped[found[2]] += int(found[1])
    reasons = [f"{number} skipped: {reason}" for reason, number in skipped.items()]
    return ["### Tests", "", "```", *failed, *reasons, *said[-1:], "```", ""]


def _compared(steps: list[dict[str, Any]]) -> list[str]:
    lines = ["### Against ONNX Runtime on the CPU", ""]
    lines += ["| model | backend | data | output | greatest | p99 | mean | relative, greatest | p99 | mean |"]
    lines += ["|---|---|---|---|---|---|---|---|---|---|"]
    decided = []
    for step in steps:
        content = step["content"]
        if not content:
            continue
        model, backend = content["model"]["name"], content["compared"]["backend"]
        if NAMED in step["command"]:
            backend += ", of a plan for this architecture"
        parts = [("golden", content["golden"]), *((part["source"], part) for part in content["data"])]
        for source, part in parts:
            for output, figures in part["outputs"].items():
                sides = (figures, figures["relative"])
                numbers = [f"{side[key]:.1e}" for side in sides for key in ("max", "p99", "mean")]
                lines.append(f"| `{model}` | `{backend}` | {source} | {output} | {' | '.join(numbers)} |")
            decided += [
                f"- `{model}` on `{backend}`, {source}: {level['changed']:,} of {level['of']:,} decisions at "
                f"`{level['severity']}` changed"
                for level in part.get("decisions", [])
            ]
    return [*lines, "", *decided, ""]


def _measured(steps: list[dict[str, Any]]) -> list[str]:
    lines = [
        "### Speed",
        "",
        "Rows per second, one batch after another. × onnxruntime: over onnxruntime in fp32 on the CPU, in",
        "the same command, by turns. × PyTorch: over PyTorch in fp32 on the same device, measured in another",
        "command; beside a plan of fp16 (`-fp16`) that is fp16 against fp32. Two in flight: rows per second",
        "with two batches in flight, as a multiple of one after another.",
        "",
    ]
    heads = ("p50 ms", "p99 ms", "rows/s", "× onnxruntime", "× PyTorch in fp32", "two in flight")
    lines += [f"| model | backend | rows | {' | '.join(heads)} |"]
    lines += ["|---|---|---|---|---|---|---|---|---|"]
    speeds = {(model, backend, p["batch"]): _speed(p) for model, backend, p in _points(steps)}
    for model, backend, point in _points(steps):
        size = point["batch"]
        if size not in SHOWN:
            continue
        rival = speeds.get((model, "pytorch" if backend in ON_CPU else "pytorch-cuda", size))
        times = "" if rival is None else f"{_speed(point) / rival:.2f}"
        latency, flight = point["latency_ms"], point["in_flight"]
        lines.append(
            f"| `{model}` | `{backend}` | {size} | {latency['p50']:.3g} | {latency['p99']:.3g} | "
            f"{_speed(point):,.0f} | {point['to_reference']} | {times} | "
            f"{'' if flight is None else flight['to_one']} |"
        )
    return [*lines, ""]


def _points(steps: list[dict[str, Any]]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(model, backend, point); of the reference, which every command measures again, those of the first."""
    seen = set()
    for content in (step["content"] for step in steps if step["content"]):
        name = content["model"]["name"]
        for backend, found in content["backends"].items():
            if (name, backend) not in seen:
                seen.add((name, backend))
                for point in found["points"]:
                    yield name, backend, point


def _speed(point: dict[str, Any]) -> float:
    return float(point["rows_per_second"]["median"])


if __name__ == "__main__":
    sys.exit(main())
