"""Which plan a load takes, and fp16 plans in an engine, on fakes of TensorRT and CUDA: nothing runs on a GPU.

A build gives the graph that was parsed as the plan, so that a plan of fp16 computes in fp16, on ONNX Runtime.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest

from engines import acceptance, bench, memory, plans, repository, tensorrt_build, tensorrt_load
from engines.engine import Engine
from engines.errors import BackendError, BuildError, GoldenError, InputError, MemoryBudgetError
from engines.plans import Provenance
from engines.precision import Precision, to_fp16
from engines.tensorrt_build import AMPERE_PLUS, Built, Profile
from schemas.model_config import Batching, ModelConfig
from tests import kinds
from tests.engines.conftest import golden_of
from tests.engines.fake_cuda import FakeDriver
from tests.engines.fake_tensorrt import FakeTensorRT

RTX = "tensorrt-rtx"
TURING, ADA, HOPPER = (7, 5), (8, 9), (9, 0)
TARGETS = ("SM75", "SM80", "SM86", "SM89")
TOLERANCE = 5e-3  # what a config has for fp16 unless it says otherwise
"""More than fp16 changes any output of the small step model."""


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeTensorRT]:
    """TensorRT for RTX and CUDA are the fakes."""
    fake = FakeTensorRT(FakeDriver(ADA))
    fake.ComputeCapability = SimpleNamespace(__members__=dict.fromkeys(TARGETS))  # type: ignore[assignment]

    def build(_: object, content: bytes, config: object, profile: Profile, *__: object) -> Built:
        fake.profile = tuple(profile)  # type: ignore[assignment]
        return Built(content, (), 1, (), (), None)

    monkeypatch.setattr(tensorrt_load, "module_of", lambda _: fake)
    monkeypatch.setattr(plans, "module_of", lambda _: fake)
    monkeypatch.setattr(tensorrt_load, "cuda_driver", lambda: fake.driver)
    monkeypatch.setattr("engines.tensorrt_build.build", build)
    yield fake
    fake.driver.expect_clean()


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A repository of a step model with a matrix product, whose golden tolerance fp16 keeps."""
    config, graph = kinds.model_of("step")
    folder = tmp_path / "models"
    put(folder, config, graph)
    return folder


def put(models: Path, config: ModelConfig, graph: bytes) -> None:
    place = models / config.name
    (place / str(config.version)).mkdir(parents=True, exist_ok=True)
    engine = repository.open_engine(config, graph)
    inputs = kinds.inputs_of(engine, 5)
    (place / str(config.version) / repository.GRAPH).write_bytes(graph)
    (place / str(config.version) / repository.GOLDEN).write_bytes(golden_of(inputs, engine.run(inputs)))
    (place / repository.CONFIG).write_bytes(msgspec.json.encode(config))
    engine.close()


def rewrite(models: Path, **changes: Any) -> ModelConfig:
    """The model's config with these changes."""
    config = msgspec.structs.replace(repository.read_config(models, "small"), **changes)
    (models / "small" / repository.CONFIG).write_bytes(msgspec.json.encode(config))
    return config


def build(
    models: Path,
    profile: tuple[int, int, int] | None = None,
    architecture: str | None = None,
    precision: Precision = "fp32",
) -> Path:
    """A plan that somebody builds, by `model build`."""
    sizes = None if profile is None else Profile(*profile)
    found = plans.obtain(models, "small", RTX, precision, sizes, architecture)
    assert found.how == "built"
    return found.path


def loaded(models: Path, **more: Any) -> Engine:
    return repository.load(models, "small", RTX, **more)


def taken(models: Path, monkeypatch: pytest.MonkeyPatch, precision: Precision = "fp32") -> str:
    """Name of the plan that a load takes; it is whatever file the engine's plan is read from."""
    read: list[Path] = []

    def read_plan(path: Path) -> bytes:
        read.append(path)
        return path.read_bytes()

    with monkeypatch.context() as patch:
        patch.setattr(plans, "read_plan", read_plan)
        loaded(models, precision=precision).close()
    [path] = read
    return path.name


def all_plans(models: Path) -> list[str]:
    return sorted(path.name for path in (models / "small/1/plans").glob("*.plan"))


def test_without_a_plan_the_usual_one_is_built(
    module: FakeTensorRT, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = f"{RTX}-0.0.fake-{AMPERE_PLUS}-fp32-1-32-64.plan"
    assert taken(models, monkeypatch) == usual
    assert taken(models, monkeypatch) == usual
    assert all_plans(models) == [usual]


@pytest.mark.parametrize(
    "built",
    [
        [((1, 8, 16), None), ((1, 32, 64), None)],
        [((1, 32, 64), None), ((1, 8, 16), None)],
        [((1, 32, 64), "89"), ((1, 32, 64), None)],
        [((1, 32, 64), None), ((1, 32, 64), "80,89")],
        [((1, 32, 64), None), ((4, 4, 8), "89"), ((1, 2, 3), None)],
    ],
)
def test_the_one_built_last_is_taken(
    module: FakeTensorRT, models: Path, built: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    last = [build(models, *asked) for asked in built][-1]
    assert taken(models, monkeypatch) == last.name
    assert len(all_plans(models)) == len(built), "nothing else is built"


@pytest.mark.parametrize("profile", [(1, 2, 3), (4, 4, 8), (64, 64, 64)])
def test_batches_within_and_beyond_a_plans_profile(
    module: FakeTensorRT, models: Path, profile: tuple[int, int, int]
) -> None:
    build(models, profile)
    engine, reference = loaded(models), repository.load(models, "small")
    for rows in (1, 5, 64):
        inputs = kinds.inputs_of(engine, rows)
        expected = reference.run(inputs)
        for name, array in engine.run(inputs).items():
            np.testing.assert_allclose(array, expected[name], rtol=1e-4, atol=1e-5)
    assert max(module.executions) <= profile[2]
    engine.close()


def test_plans_that_this_gpu_cannot_run_are_passed_over(
    module: FakeTensorRT, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitting = build(models, architecture="80,89")
    build(models, architecture="75,86")
    build(models, precision="fp16")
    assert taken(models, monkeypatch) == fitting.name
    module.driver.capability = (8, 6)
    assert "-sm75+sm86-fp32-" in taken(models, monkeypatch)
    module.driver.capability = (12, 0)
    assert f"-{AMPERE_PLUS}-fp32-" in taken(models, monkeypatch)


def change_graph(models: Path, path: Path) -> None:
    config, graph = kinds.model_of("features")  # of the same name, another graph and other tensors
    put(models, config, graph)


def damage(models: Path, path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def lose_provenance(models: Path, path: Path) -> None:
    path.with_suffix(".json").unlink()


def be_of_another_module(models: Path, path: Path) -> None:
    made = plans.read_provenance(path)
    key = msgspec.structs.replace(made.key, module_version="0.1")
    told = msgspec.structs.replace(made, key=key)
    path.with_suffix(".json").write_bytes(msgspec.json.encode(told))


def be_for_more_rows(models: Path, path: Path) -> None:
    rewrite(models, dynamic_batching=Batching(max_batch_size=8))


@pytest.mark.parametrize(
    "spoil", [change_graph, damage, lose_provenance, be_of_another_module, be_for_more_rows]
)
def test_plans_that_are_not_current_are_passed_over(
    module: FakeTensorRT, models: Path, spoil: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = build(models, (1, 8, 16), "89")
    assert taken(models, monkeypatch) == path.name
    spoil(models, path)
    assert f"-{AMPERE_PLUS}-fp32-1-" in taken(models, monkeypatch)


def test_a_damaged_plan_gives_way_to_the_one_before(
    module: FakeTensorRT, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, last = build(models, (1, 8, 16)), build(models, (1, 8, 32))
    damage(models, last)
    assert taken(models, monkeypatch) == first.name


def test_a_smaller_profile_is_what_a_small_gpu_needs(
    module: FakeTensorRT, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way out that the errors of too little memory name: a plan for smaller batches."""
    config = repository.read_config(models, "small")
    module.context_bytes = 0
    least = memory.of_plan(config, 1 << 12, 4)[1]
    with pytest.raises(MemoryBudgetError):
        loaded(models, memory_limit=least)
    build(models, (1, 4, 4))
    loaded(models, memory_limit=least).close()


def test_fp16_is_loaded_named_and_computes_in_fp16(module: FakeTensorRT, models: Path) -> None:
    graph = repository.read_graph(models, repository.read_config(models, "small"))
    engine, reference = loaded(models, precision="fp16"), repository.load(models, "small")
    converted = repository.open_engine(reference.config, to_fp16(graph))
    assert engine.backend == "tensorrt-rtx-cuda-fp16"
    inputs = kinds.inputs_of(engine, 32)
    came, whole, half = engine.run(inputs), reference.run(inputs), converted.run(inputs)
    assert (came["risk"] != whole["risk"]).any()
    for name, array in came.items():
        np.testing.assert_array_equal(array, half[name])
        np.testing.assert_allclose(array, whole[name], atol=TOLERANCE)
    engine.close()
    [kernels] = (models / "small/1/plans").glob("*.kernels")
    assert kernels.name == f"{RTX}-0.0.fake-{AMPERE_PLUS}-fp16-1-32-64.kernels"
    assert loaded_name(models) == "tensorrt-rtx-cuda"


def loaded_name(models: Path) -> str:
    engine = loaded(models)
    engine.close()
    return engine.backend


def test_fp16_is_held_to_the_golden_tolerance(module: FakeTensorRT, models: Path) -> None:
    rewrite(models, golden_tolerance_fp16=1e-6)
    with pytest.raises(GoldenError, match=r"differs from golden.npz by .*, over 1e-06"):
        loaded(models, precision="fp16")
    loaded(models).close()


@pytest.mark.parametrize("backend", ["onnxruntime", "onnxruntime-cuda"])
def test_other_backends_have_no_precision(backend: str, models: Path) -> None:
    with pytest.raises(
        BackendError, match=f"{backend} computes model.onnx as it is: precision fp16 is of plans"
    ):
        repository.load(models, "small", backend, precision="fp16")


def test_turing_gets_a_plan_of_its_own(
    module: FakeTensorRT, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(models, precision="fp16")
    module.driver.capability = TURING
    assert taken(models, monkeypatch, "fp16") == f"{RTX}-0.0.fake-sm75-fp16-1-32-64.plan"


def test_turing_in_fp32_is_told_what_to_do(
    module: FakeTensorRT, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> Built:
        raise BuildError("tensorrt_rtx 1.7 cannot compile small for sm75: FP32 GEMM is not supported")

    monkeypatch.setattr("engines.tensorrt_build.build", refuse)
    module.driver.capability = TURING
    with pytest.raises(BuildError, match=r"FP32 GEMM is not supported; .* sm75: take precision fp16, the"):
        loaded(models)
    module.driver.capability = ADA
    with pytest.raises(BuildError, match=r"FP32 GEMM is not supported$"):
        loaded(models)


@pytest.mark.parametrize("there", [False, True])
def test_hopper_has_no_target_in_tensorrt_for_rtx(
    module: FakeTensorRT, models: Path, there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused before a plan is built, and where a plan for Ampere and later lies there already."""
    known = dict.fromkeys((*TARGETS, "SM120"))
    monkeypatch.setattr(module, "ComputeCapability", SimpleNamespace(__members__=known))
    if there:
        build(models)
    module.driver.capability = HOPPER
    with pytest.raises(BackendError, match=r"has no target sm90, .* 75, 80, 86, 89, 120 and later: serve on"):
        loaded(models)
    assert len(all_plans(models)) == int(there)
    module.driver.capability = (12, 1)
    loaded(models).close()


@pytest.mark.parametrize(("device", "architecture"), [(TURING, "sm75"), (HOPPER, "sm90")])
def test_tensorrt_itself_builds_for_the_gpu_that_is_there(
    module: FakeTensorRT,
    models: Path,
    device: tuple[int, int],
    architecture: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(module, "ComputeCapability")
    monkeypatch.delattr(FakeTensorRT, "ComputeCapability")
    monkeypatch.setattr("engines.tensorrt_module.cuda_driver", lambda: module.driver)
    module.driver.capability = device
    repository.load(models, "small", "tensorrt").close()
    assert all_plans(models) == [f"tensorrt-0.0.fake-{architecture}-fp32-1-32-64.plan"]


def test_tensorrt_itself_on_turing_is_not_told_of_fp16_alone(
    module: FakeTensorRT, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That is TensorRT for RTX's; TensorRT's own words are all there is to say."""

    def refuse(*_: object) -> Built:
        raise BuildError("tensorrt 10.1 cannot compile small for sm75: no kernel")

    monkeypatch.delattr(module, "ComputeCapability")
    monkeypatch.delattr(FakeTensorRT, "ComputeCapability")
    monkeypatch.setattr("engines.tensorrt_module.cuda_driver", lambda: module.driver)
    monkeypatch.setattr("engines.tensorrt_build.build", refuse)
    module.driver.capability = TURING
    with pytest.raises(BuildError, match=r"cannot compile small for sm75: no kernel$"):
        repository.load(models, "small", "tensorrt")


def test_bench_measures_the_precisions_asked_for(module: FakeTensorRT, models: Path) -> None:
    with bench.opened(models, "small", [RTX], precisions=["fp32", "fp16"]) as found:
        names = {name: engine.backend for name, engine in found.engines.items()}
    assert names == {
        "onnxruntime": "onnxruntime-cpu",
        "tensorrt-rtx": "tensorrt-rtx-cuda",
        "tensorrt-rtx-fp16": "tensorrt-rtx-cuda-fp16",
    }
    with bench.opened(models, "small", precisions=["fp16"]) as found:
        assert "tensorrt-rtx" not in found.engines
        assert found.engines["tensorrt-rtx-fp16"].backend == "tensorrt-rtx-cuda-fp16"
        assert "onnxruntime-cuda" in found.refused


def test_bench_refuses_fp16_of_backends_without_plans(models: Path) -> None:
    with (
        pytest.raises(
            InputError, match=r"precision fp16 is of plans: measure .*, not onnxruntime-cuda alone"
        ),
        bench.opened(models, "small", ["onnxruntime-cuda"], precisions=["fp16"]),
    ):
        pass


def test_a_model_is_checked_on_its_plan(module: FakeTensorRT, models: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    findings = acceptance.check(models, "small", RTX, precision="fp16", plans=kept)
    told = {finding.subject: finding for finding in findings}
    assert all(finding.well for finding in findings), findings
    assert re.search(r"agree within 0.005", told["batches"].detail)
    assert told["speed"].detail.endswith("on tensorrt-rtx-cuda-fp16")
    [path] = (kept / "small/1").glob("*.plan")
    made = msgspec.json.decode(path.with_suffix(".json").read_bytes(), type=Provenance)
    assert made.key.precision == "fp16"
    assert not (models / "small/1/plans").exists()


def test_tensorrts_plans_for_ampere_and_later_need_no_trust_to_be_loaded() -> None:
    """A version-compatible plan holds code; a runtime loads it only when told that it may run that."""

    class Options:
        hardware_compatibility_level = ""

        def __init__(self) -> None:
            self.flags = {"TF32"}  # as TensorRT has it by default

        def clear_flag(self, flag: str) -> None:
            self.flags.remove(flag)

        def set_flag(self, flag: str) -> None:
            self.flags.add(flag)

    module: Any = SimpleNamespace(
        BuilderFlag=SimpleNamespace(TF32="TF32", VERSION_COMPATIBLE="VERSION_COMPATIBLE"),
        HardwareCompatibilityLevel=SimpleNamespace(AMPERE_PLUS="ampere"),
    )
    options = Options()
    assert tensorrt_build._set_flags(module, options, AMPERE_PLUS) == ("no-tf32", "hardware-compatible")
    assert (options.flags, options.hardware_compatibility_level) == (set(), "ampere")
