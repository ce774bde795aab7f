"""Plans, built by TensorRT for RTX as it is, without a GPU: nothing here runs one."""

import json
import re
from pathlib import Path

import pytest
from onnx import TensorProto, helper

from engines import plans, repository, tensorrt_build
from engines.errors import BackendError, BuildError, EngineError, ExtraError, GraphError
from engines.plan_inspect import inspect_file
from engines.plans import Obtained
from engines.precision import Precision
from engines.tensorrt_build import Profile
from engines.tensorrt_engine import TensorRTEngine
from engines.tensorrt_module import cuda_driver, module_of
from tests import kinds
from tests.engines.conftest import config_of, graph
from tests.engines.fake_cuda import FakeDriver
from tests.engines.test_repository import put_graph

rtx = pytest.importorskip("tensorrt_rtx", reason="building needs the extra `tensorrt-rtx`")

pytestmark = pytest.mark.tensorrt

SHIPPED = [config.name for config in repository.list_models()]
RTX = "tensorrt-rtx"


def obtain(models: Path) -> Obtained:
    return plans.obtain(models, "tiny", RTX)


def state(path: Path, models: Path) -> str:
    found: str = inspect_file(path, models)["state"]
    return found


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_model_builds(name: str, precision: Precision, tmp_path: Path) -> None:
    config = repository.read_config(repository.SHIPPED, name)
    found = plans.obtain(repository.SHIPPED, name, RTX, precision, plans=tmp_path)
    assert found.how == "built"
    assert found.path.read_bytes()
    content = inspect_file(found.path, repository.SHIPPED)
    assert content["state"] == "current"
    most = config.dynamic_batching.max_batch_size
    names = {t.name for t in (*config.input, *config.output)}
    names |= {n for pair in config.state for n in (pair.input, pair.output)}
    assert {t["name"] for t in content["tensors"]} == names
    for tensor in content["tensors"]:
        assert tensor["type"] == "FLOAT"
        assert tensor["shape"][0] == -1
        if tensor["mode"] == "input":
            assert [shape[0] for shape in tensor["profile"]] == [1, min(32, most), most]


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_every_kind_builds(kind: str) -> None:
    config, content = kinds.model_of(kind)
    made = tensorrt_build.build(rtx, content, config, Profile(1, 4, 16), tensorrt_build.AMPERE_PLUS)
    assert made.plan
    assert made.timing_cache is None


def test_a_second_build_is_a_hit(repository_path: Path) -> None:
    first = obtain(repository_path)
    again = obtain(repository_path)
    assert (first.how, again.how) == ("built", "cached")
    assert again.provenance == first.provenance
    assert first.path.parent == repository_path / "tiny/3/plans"


def test_a_changed_model_is_a_miss(repository_path: Path) -> None:
    first = obtain(repository_path)
    put_graph(repository_path, graph(bias=1.0))
    config = repository.read_config(repository_path, "tiny")
    assert (
        state(first.path, repository_path) == f"stale: the model has changed since it was built; {plans.ANEW}"
    )
    again = obtain(repository_path)
    assert (again.how, again.why) == ("rebuilt", "the model has changed since it was built")
    assert again.provenance.key.digest == config.digest
    assert state(again.path, repository_path) == "current"


def test_other_profiles_and_architectures_are_other_plans(repository_path: Path) -> None:
    found = [
        plans.obtain(repository_path, "tiny", RTX, profile=profile, architecture=architecture)
        for profile in (None, Profile(1, 2, 4))
        for architecture in (None, "86", "89,80")
    ]
    assert {each.how for each in found} == {"built"}
    assert len({each.path for each in found}) == 6
    assert found[2].provenance.key.architecture == "sm80+sm89"


def test_a_profile_beyond_the_models_batches_is_refused(repository_path: Path) -> None:
    with pytest.raises(BuildError, match="tiny takes batches of 32 rows at most, the profile has 33"):
        plans.obtain(repository_path, "tiny", RTX, profile=Profile(1, 2, 33))


def test_a_damaged_plan_is_rebuilt(repository_path: Path) -> None:
    path = obtain(repository_path).path
    path.write_bytes(path.read_bytes()[:-1])
    assert state(path, repository_path).startswith("damaged: its bytes are not those that were built")
    assert obtain(repository_path).how == "rebuilt"
    assert obtain(repository_path).how == "cached"


@pytest.mark.parametrize("content", [None, b"{}", b"not JSON"])
def test_a_plan_without_provenance_is_rebuilt(repository_path: Path, content: bytes | None) -> None:
    path = obtain(repository_path).path
    beside = path.with_suffix(".json")
    beside.unlink() if content is None else beside.write_bytes(content)
    assert state(path, repository_path).startswith("damaged: its provenance was missing or damaged")
    again = obtain(repository_path)
    assert (again.how, again.why) == ("rebuilt", "its provenance was missing or damaged")


def test_the_provenance_is_json_beside_the_plan(repository_path: Path) -> None:
    found = obtain(repository_path)
    assert plans.read_provenance(found.path) == found.provenance
    content = json.loads(found.path.with_suffix(".json").read_bytes())
    assert content["key"]["module_version"] == rtx.__version__
    assert content["key"]["profile"] == [1, 32, 32]
    assert sorted(file.suffix for file in found.path.parent.iterdir()) == [".json", ".plan"]


def test_what_the_runtime_says_without_a_driver(repository_path: Path) -> None:
    engine = inspect_file(obtain(repository_path).path, repository_path)["engine"]
    if engine["loaded"]:
        pytest.skip("this machine has a GPU that loads the plan")
    assert "compiled, never executed here" in engine["note"]
    assert "when it was built" in engine["note"]


def test_an_unsupported_operator_is_named() -> None:
    nodes = [helper.make_node("Frobnicate", ["x"], ["y"], name="odd", domain="example")]
    row = ["batch", 3]
    made = helper.make_graph(
        nodes,
        "odd",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, row)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, row)],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("example", 1)]
    content = helper.make_model(made, opset_imports=opsets, ir_version=8).SerializeToString()
    with pytest.raises(BuildError, match=r"cannot parse model.onnx at node 'odd' \(Frobnicate\): .*Plugin"):
        tensorrt_build.build(rtx, content, config_of(content), Profile(1, 2, 4), tensorrt_build.AMPERE_PLUS)


def test_a_graph_that_does_not_fit_its_config_is_refused() -> None:
    content = graph(risk="hazard")
    with pytest.raises(BuildError, match="hazard"):
        tensorrt_build.build(rtx, content, config_of(content), Profile(1, 2, 4), tensorrt_build.AMPERE_PLUS)


def test_hopper_is_not_among_its_targets(repository_path: Path) -> None:
    with pytest.raises(BuildError, match=r"75, 80, 86, 89, 120.*; it has no target 90"):
        plans.obtain(repository_path, "tiny", RTX, architecture="90")


def test_turing_takes_fp16_alone() -> None:
    config, content = kinds.model_of("features")
    with pytest.raises(BuildError, match="FP32 GEMM is not supported"):
        tensorrt_build.build(rtx, content, config, Profile(1, 2, 4), "sm75")


def test_a_graph_without_products_has_no_fp16_plan(repository_path: Path) -> None:
    with pytest.raises(GraphError, match="no matrix product"):
        plans.obtain(repository_path, "tiny", RTX, "fp16")


def test_a_folder_that_cannot_be_written(repository_path: Path) -> None:
    (repository_path / "file").touch()
    with pytest.raises(
        BuildError, match="another folder for plans is named by --plans, for a worker by RISKSTREAM_PLANS"
    ):
        plans.obtain(repository_path, "tiny", RTX, plans=repository_path / "file")


@pytest.mark.parametrize("text", ["1,2", "4,2,8", "0,1,2", "1,2,3,4", "a,b,c", "1,-2,3", ""])
def test_profiles_that_are_none(text: str) -> None:
    with pytest.raises(BuildError, match=re.escape(repr(text))):
        Profile.parse(text)


def test_a_missing_module_says_what_to_install() -> None:
    try:
        import tensorrt  # noqa: F401
    except (ImportError, OSError):
        with pytest.raises(ExtraError, match=r"pip install 'riskstream\[tensorrt\]'"):
            module_of("tensorrt")
    else:
        pytest.skip("tensorrt is installed here")


def test_the_engine_says_why_the_runtime_does_not_load_a_plan(repository_path: Path) -> None:
    """The runtime is real, and refuses for want of a driver; CUDA alone is a fake."""
    plan, driver = obtain(repository_path).path.read_bytes(), FakeDriver()
    config = repository.read_config(repository_path, "tiny")
    try:
        cuda_driver()
    except EngineError:
        with pytest.raises(BackendError, match=r"tensorrt_rtx .* does not load the plan of tiny \(.*35"):
            TensorRTEngine(config, plan, rtx, driver)
        driver.expect_clean()
    else:
        pytest.skip("this machine has a GPU that loads the plan")


def test_the_module_has_what_the_engine_calls() -> None:
    calls = {
        rtx.Runtime: ("deserialize_cuda_engine",),
        rtx.ICudaEngine: (
            "num_io_tensors",
            "get_tensor_name",
            "get_tensor_mode",
            "get_tensor_shape",
            "get_tensor_dtype",
            "get_tensor_profile_shape",
            "create_runtime_config",
            "create_execution_context",
        ),
        rtx.IRuntimeConfig: ("dynamic_shapes_kernel_specialization_strategy",),
        rtx.IExecutionContext: ("set_input_shape", "set_tensor_address", "execute_async_v3"),
        rtx.DynamicShapesKernelSpecializationStrategy: ("NONE",),
        rtx.TensorIOMode: ("INPUT", "OUTPUT"),
        rtx.DataType: ("FLOAT",),
    }
    for owner, names in calls.items():
        assert [name for name in names if not hasattr(owner, name)] == [], owner
