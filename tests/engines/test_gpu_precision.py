"""Plans of fp16 and of other profiles on a GPU; skipped, with the reason, where a backend cannot run."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from engines import bench, plans, repository, tensorrt_load
from engines.compare import Side, on_golden, pair_of
from engines.errors import BackendError
from engines.tensorrt_build import Profile
from engines.tensorrt_module import BACKENDS, capability
from tests import kinds
from tests.engines.test_plan_choice import put

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore:The CUDA compiler succeeded")]

SHIPPED = [config.name for config in repository.list_models()]

APART = 5e-3
"""More than fp16 changes any output of a shipped model on its golden data, on ONNX Runtime 2.3e-3."""


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    try:
        tensorrt_load.runtime(request.param)
    except BackendError as error:
        pytest.skip(str(error))
    name: str = request.param
    return name


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_models_in_fp16(backend: str, name: str, tmp_path: Path) -> None:
    pair = pair_of(repository.SHIPPED, name, Side(backend, "fp16"), Side(), tmp_path)
    try:
        assert pair.other.backend == f"{backend}-cuda-fp16"
        outputs = on_golden(pair, repository.SHIPPED)["outputs"]
        assert 0 < max(figures["max"] for figures in outputs.values()) < APART
    finally:
        pair.close()


@pytest.mark.parametrize("profile", [(1, 16, 32), (16, 16, 64)])
def test_another_profile_is_served(backend: str, profile: tuple[int, int, int], tmp_path: Path) -> None:
    config = repository.read_config(repository.SHIPPED, "vitals")
    repository.load(repository.SHIPPED, "vitals", backend, tmp_path).close()  # builds the usual one
    plans.obtain(repository.SHIPPED, "vitals", backend, profile=Profile(*profile), plans=tmp_path)
    here = capability(tensorrt_load.runtime(backend)[1])
    fits = partial(tensorrt_load.fits, device=here)
    chosen = plans.last_built(repository.SHIPPED, config, backend, "fp32", fits, tmp_path)
    assert chosen is not None
    assert chosen.provenance.key.profile == profile
    engine = repository.load(repository.SHIPPED, "vitals", backend, tmp_path)
    reference = repository.load(repository.SHIPPED, "vitals")
    inputs = bench.repeated(bench.golden_inputs(repository.SHIPPED, config), 200)
    expected = reference.run(inputs)
    for tensor, array in engine.run(inputs).items():
        np.testing.assert_allclose(array, expected[tensor], atol=config.golden_tolerance_fp16)
    engine.close()
    reference.close()


def test_a_plan_for_this_architecture_alone_is_served(tmp_path: Path) -> None:
    try:
        module, driver = tensorrt_load.runtime("tensorrt-rtx")
    except BackendError as error:
        pytest.skip(str(error))
    here = "".join(map(str, capability(driver)))
    if not hasattr(module.ComputeCapability, f"SM{here}"):
        pytest.skip(f"TensorRT for RTX has no target {here}")
    obtain = partial(plans.obtain, repository.SHIPPED, "vitals", "tensorrt-rtx", plans=tmp_path)
    made = obtain("fp16", architecture=here)
    pair = pair_of(repository.SHIPPED, "vitals", Side("tensorrt-rtx", "fp16"), Side(), tmp_path)
    pair.close()
    assert made.path.with_suffix(".kernels").exists()
    assert len(list(tmp_path.rglob("*.plan"))) == 1, "no other is built"


def test_fp16_passes_a_golden_gate_that_is_wide_enough(backend: str, tmp_path: Path) -> None:
    config, graph = kinds.model_of("step")
    put(tmp_path, config, graph)
    engine = repository.load(tmp_path, "small", backend, precision="fp16")
    assert engine.backend == f"{backend}-cuda-fp16"
    engine.close()
