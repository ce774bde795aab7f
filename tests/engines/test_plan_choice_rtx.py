"""Plans of fp16, of other profiles and of named architectures, built by TensorRT for RTX and found by a load.

No plan runs here: without a driver the runtime loads none, and says so.
"""

import json
from functools import partial
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner, Result

from engines import plans, repository, tensorrt_load
from engines.errors import BackendError, EngineError
from engines.plans import Obtained
from engines.precision import Precision
from engines.tensorrt_build import AMPERE_PLUS, Profile
from engines.tensorrt_module import cuda_driver
from tests.engines.fake_cuda import FakeDriver
from worker.cli import app

pytest.importorskip("tensorrt_rtx", reason="building needs the extra `tensorrt-rtx`")

pytestmark = pytest.mark.tensorrt

SHIPPED = [config.name for config in repository.list_models()]
RTX = "tensorrt-rtx"


def found(name: str, precision: Precision, device: tuple[int, int], folder: Path) -> Obtained | None:
    config = repository.read_config(repository.SHIPPED, name)
    fits = partial(tensorrt_load.fits, device=device)
    return plans.last_built(repository.SHIPPED, config, RTX, precision, fits, folder)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_models_in_fp16_for_turing_and_others(name: str, tmp_path: Path) -> None:
    obtain = partial(plans.obtain, repository.SHIPPED, name, RTX, plans=tmp_path)
    named = obtain("fp16", architecture="75,86")
    assert named.provenance.key.architecture == "sm75+sm86"
    assert found(name, "fp16", (7, 5), tmp_path) == named._replace(how="cached", why=ANY_WHY)
    assert found(name, "fp16", (8, 9), tmp_path) is None
    assert found(name, "fp32", (8, 6), tmp_path) is None
    portable = obtain("fp16")
    assert portable.provenance.key.architecture == AMPERE_PLUS
    assert found(name, "fp16", (8, 6), tmp_path) == portable._replace(how="cached", why=ANY_WHY)
    assert found(name, "fp16", (7, 5), tmp_path) == named._replace(how="cached", why=ANY_WHY)


ANY_WHY = "model, graph and plan are those of its provenance"


def test_a_plan_of_a_build_machine_is_found_where_it_is_copied_to(tmp_path: Path) -> None:
    built = plans.obtain(
        repository.SHIPPED, "vitals", RTX, "fp16", Profile(1, 64, 512), "86,89", tmp_path / "there"
    )
    place = tmp_path / "here" / "vitals" / built.path.parent.name
    place.mkdir(parents=True)
    for file in (built.path, built.path.with_suffix(".json")):
        (place / file.name).write_bytes(file.read_bytes())
    came = found("vitals", "fp16", (8, 9), tmp_path / "here")
    assert came is not None
    assert (came.path.parent, came.provenance) == (place, built.provenance)


@pytest.mark.parametrize("device", [(7, 5), (8, 9)])
def test_a_load_builds_what_the_gpu_needs_and_goes_as_far_as_the_runtime(
    device: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The module is real; of CUDA there is a fake that says which GPU there would be."""
    try:
        cuda_driver()
    except EngineError:
        driver = FakeDriver(device)
    else:
        pytest.skip("this machine has a GPU that loads the plan")
    driver.mem_get_info = lambda: (1 << 30, 1 << 30)  # type: ignore[method-assign]
    monkeypatch.setattr(tensorrt_load, "cuda_driver", lambda: driver)
    with pytest.raises(BackendError, match=r"tensorrt_rtx .* does not load the plan of bedside \(.*35"):
        repository.load(repository.SHIPPED, "bedside", RTX, tmp_path, precision="fp16")
    [path] = tmp_path.rglob("*.plan")
    key = plans.read_provenance(path).key
    assert (key.precision, key.architecture) == ("fp16", AMPERE_PLUS if device > (8, 0) else "sm75")
    driver.expect_clean()


def test_hopper_is_refused_before_anything_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_load, "cuda_driver", lambda: FakeDriver((9, 0)))
    with pytest.raises(BackendError, match=r"has no target sm90, .* 75, 80, 86, 89, 120, 121 and later"):
        repository.load(repository.SHIPPED, "bedside", RTX, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("device", [(7, 5), (8, 0), (8, 6), (8, 9), (12, 0), (12, 1), (13, 0)])
def test_gpus_that_are_no_hopper_are_let_through(
    device: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt_load, "cuda_driver", lambda: FakeDriver(device))
    tensorrt_load.runtime(RTX)


def test_turing_in_fp32_is_told_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_load, "cuda_driver", lambda: FakeDriver((7, 5)))
    with pytest.raises(EngineError, match=r"FP32 GEMM is not supported.* take precision fp16, the backend"):
        repository.load(repository.SHIPPED, "bedside", RTX, tmp_path)


def test_provenance_of_fp16_names_the_graph_that_was_parsed(tmp_path: Path) -> None:
    made = plans.obtain(repository.SHIPPED, "bedside", RTX, "fp16", plans=tmp_path)
    told = msgspec.json.decode(made.path.with_suffix(".json").read_bytes(), type=plans.Provenance)
    assert told.key.graph_digest != told.key.digest


def test_a_build_says_which_plan_serves_instead_of_a_cached_one(tmp_path: Path) -> None:
    def built(*profile: str) -> Result:
        asked = ("model", "build", "bedside", "--backend", RTX, "--plans", str(tmp_path), *profile)
        return CliRunner().invoke(app, asked)

    first = json.loads(built("--json").stdout)
    second = json.loads(built("--profile", "1,8,16", "--json").stdout)
    assert (first["later"], second["later"]) == (None, None)
    again = built()
    assert again.stdout.startswith("cached:")
    assert f"{second['plan']} was built later and serves where both can run; remove it" in again.stdout
    Path(second["plan"]).unlink()
    assert "was built later" not in built().stdout
