"""The memory budget: estimates beside what loads take, what there is, refusals before anything is read."""

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import msgspec
import pytest

from engines import memory, repository, tensorrt_module
from engines.errors import ExtraError, MemoryBudgetError
from schemas.model_config import Batching
from tests.engines.conftest import config_of, graph
from tests.engines.fake_cuda import FakeDriver
from tests.kinds import model_of

MIB = 1 << 20

GROWTH = """
import gc, sys
from pathlib import Path
from engines import repository
from tests.engines.conftest import config_of, graph, tiny_inputs

def resident(field):
    return int(Path("/proc/self/status").read_text().split(field + ":")[1].split()[0]) << 10

first = repository.open_engine(config_of(graph()), graph())  # what the runtime takes once is not the model's
first.run(tiny_inputs(5))
first.close()
gc.collect()
Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
before = resident("VmRSS")
engine = repository.load(repository.SHIPPED, sys.argv[1])
print(resident("VmHWM") - before)
"""


@pytest.mark.parametrize("name", [config.name for config in repository.list_models()])
def test_the_estimate_is_not_below_what_a_load_takes_nor_far_above(name: str) -> None:
    """Growth of a fresh process's peak resident memory by a load with its warm-up, file bytes included."""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("this system does not count peaks")
    made = subprocess.run(
        [sys.executable, "-c", GROWTH, name], capture_output=True, text=True, check=True, timeout=60
    )
    grown, estimate = int(made.stdout), estimate_of(name)
    assert grown <= estimate <= 4 * grown, f"{grown / MIB:.1f} MiB measured, {estimate / MIB:.1f} estimated"


def estimate_of(name: str) -> int:
    config = repository.read_config(repository.SHIPPED, name)
    return memory.of_graph(
        config,
        (repository.SHIPPED / name / str(config.version) / repository.GRAPH).stat().st_size,
        one_by_one=config.kind == "image",
    )


def test_what_an_estimate_is_made_of() -> None:
    config = config_of(graph())
    row = 4 * (3 * 2 + 4 + 1 + 4)
    assert memory.row_bytes(config) == row
    more = msgspec.structs.replace(config, dynamic_batching=Batching(max_batch_size=64))
    estimates = [
        memory.of_graph(each, size, one_by_one=False) for each in (config, more) for size in (0, 1000)
    ]
    assert estimates == [
        memory.SESSION_BYTES + memory.ROW_COPIES * rows * row + memory.GRAPH_COPIES * size
        for rows in (32, 64)
        for size in (0, 1000)
    ]


@pytest.mark.parametrize("kind", ["image", "whole"])
def test_where_rows_run_one_by_one_the_batch_does_not_matter(kind: str) -> None:
    config, content = model_of(kind)
    large = msgspec.structs.replace(config, dynamic_batching=Batching(max_batch_size=4096))
    assert memory.of_graph(config, len(content), one_by_one=True) == memory.of_graph(
        large, len(content), one_by_one=True
    )


def test_a_plan_takes_its_weights_and_two_buffers_of_every_tensor() -> None:
    config = config_of(graph())
    buffers = 2 * 64 * memory.row_bytes(config)
    assert memory.of_plan(config, 1000, 64) == (1000 + buffers, 2000 + buffers)


def test_over_the_budget_nothing_is_read(repository_path: Path) -> None:
    (repository_path / "tiny/3/model.onnx").write_bytes(b"\0" * (3 * MIB))  # of another digest, too
    with pytest.raises(
        MemoryBudgetError,
        match=r"tiny version 3 needs about 20 MiB of the machine's memory, its budget is 19 MiB: raise it "
        r"\(RISKSTREAM_MODEL_MEMORY_MB\)",
    ):
        repository.load(repository_path, "tiny", memory_limit=19 * MIB)


def test_within_the_budget_it_loads(repository_path: Path) -> None:
    repository.load(repository_path, "tiny", memory_limit=5 * MIB).close()


def test_more_than_there_is_is_refused(repository_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda: 3 * MIB)
    with pytest.raises(
        MemoryBudgetError,
        match=r"needs about 5 MiB of the machine's memory, 3 MiB are available: give the process",
    ):
        repository.load(repository_path, "tiny", memory_limit=100 * MIB)
    monkeypatch.setattr(memory, "available", lambda: None)  # nobody knows
    repository.load(repository_path, "tiny").close()


def test_on_the_gpu_its_memory_counts(repository_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_module, "free_memory_if_known", lambda: 2 * MIB)
    with pytest.raises(MemoryBudgetError, match="needs about 5 MiB of the GPU's memory, 2 MiB are available"):
        repository.load(repository_path, "tiny", "onnxruntime-cuda")
    monkeypatch.setattr(tensorrt_module, "free_memory_if_known", lambda: None)
    with pytest.raises(MemoryBudgetError, match="needs about 5 MiB of the GPU's memory, its budget is 1 MiB"):
        repository.load(repository_path, "tiny", "onnxruntime-cuda", memory_limit=MIB)


def test_a_gpu_that_cannot_be_asked_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = FakeDriver()
    monkeypatch.setattr(tensorrt_module, "cuda_driver", lambda: driver)
    assert tensorrt_module.free_memory_if_known() == driver.mem_get_info()[0]
    driver.expect_clean()

    def cuda_driver() -> ModuleType:
        raise ExtraError("no PyCUDA")

    monkeypatch.setattr(tensorrt_module, "cuda_driver", cuda_driver)
    assert tensorrt_module.free_memory_if_known() is None


def system(root: Path, files: dict[str, str]) -> Path:
    """A /proc and a /sys."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


MEMINFO = (
    "MemTotal:        8000 kB\nMemFree:          500 kB\nMemAvailable:    3000 kB\nHugePages_Total:       0\n"
)


def group(limit: str, usage: int, cache: int) -> dict[str, str]:
    """A control group of version 2."""
    return {
        "memory.max": f"{limit}\n",
        "memory.current": f"{usage}\n",
        "memory.stat": f"anon 5\nfile 7\ninactive_file {cache}\nactive_file 9\n",
    }


def test_without_control_groups_the_machine_counts(tmp_path: Path) -> None:
    assert memory.available(system(tmp_path, {"proc/meminfo": MEMINFO})) == 3000 * 1024


def test_where_the_system_tells_nothing_nobody_knows(tmp_path: Path) -> None:
    assert memory.available(tmp_path) is None


@pytest.mark.parametrize(
    ("inner", "outer", "left"),
    [
        (("1000000", 300_000, 50_000), ("max", 1, 1), 750_000),
        (("1000000", 300_000, 50_000), ("900000", 800_000, 0), 100_000),  # the one above bounds it too
        (("1000000", 1_200_000, 0), ("max", 1, 1), 0),
        (("max", 300_000, 0), ("max", 1, 1), 3000 * 1024),
    ],
)
def test_a_group_of_version_2_and_those_above_it(
    tmp_path: Path, inner: tuple[str, int, int], outer: tuple[str, int, int], left: int
) -> None:
    groups = {"pods/one": group(*inner), "pods": group(*outer)}
    files = {
        f"sys/fs/cgroup/{at}/{name}": text for at, all_of in groups.items() for name, text in all_of.items()
    }
    files |= {"proc/meminfo": MEMINFO, "proc/self/cgroup": "0::/pods/one\n"}
    assert memory.available(system(tmp_path, files)) == left


def test_a_container_that_sees_itself_at_the_root(tmp_path: Path) -> None:
    files = {f"sys/fs/cgroup/{name}": text for name, text in group("1000000", 400_000, 0).items()}
    for path in ("/", "/docker/0123", "/../../pod"):
        assert memory.available(system(tmp_path, files | {"proc/self/cgroup": f"0::{path}\n"})) == 600_000


def test_groups_of_version_1(tmp_path: Path) -> None:
    files = {
        "proc/meminfo": MEMINFO,
        "proc/self/cgroup": "9:name=systemd:/\n4:cpu,memory:/a\n3:cpuset:/\n0::/\n",
        "sys/fs/cgroup/memory/a/memory.limit_in_bytes": "500000\n",
        "sys/fs/cgroup/memory/a/memory.usage_in_bytes": "100000\n",
        "sys/fs/cgroup/memory/a/memory.stat": "inactive_file 1\ntotal_inactive_file 2000\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": "123\n",
    }
    assert memory.available(system(tmp_path, files)) == 402_000


def test_this_machine_tells() -> None:
    left = memory.available()
    assert left is not None
    assert left > 16 * MIB
