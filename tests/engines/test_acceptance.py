"""`check` finds what is wrong with a model by trying it, and passes what is well."""

from pathlib import Path

import msgspec
import numpy as np
import pytest
from onnx import helper

from engines import acceptance, repository, synthetic
from engines.errors import GraphError, RepositoryError
from schemas.model_config import Batching, ModelConfig
from tests.kinds import FEATURES, KINDS, engine_of, model_of, serialised


@pytest.fixture(autouse=True)
def _timed_briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    """A speed is told and never judged: a hundredth of a second is enough to tell one."""
    monkeypatch.setattr(acceptance, "TIMED_S", 0.01)


def put(folder: Path, config: ModelConfig, graph: bytes) -> None:
    """Add a model as `riskstream model add` does."""
    path = folder / "config.json"
    path.write_bytes(msgspec.json.encode(config))
    acceptance.add(folder, graph, path)


@pytest.mark.parametrize("kind", KINDS)
def test_a_sound_model_of_any_kind_is_well(tmp_path: Path, kind: str) -> None:
    put(tmp_path, *model_of(kind))
    findings = acceptance.check(tmp_path, "small")
    assert [finding.subject for finding in findings] == [
        "config",
        "files",
        "outputs",
        "hostile",
        "batches",
        "speed",
        *(["reference"] if repository.read_config(tmp_path, "small").kind != "image" else []),
    ]
    assert all(finding.well for finding in findings), findings


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("most", [1, 2])
def test_a_model_that_takes_few_rows_at_once(tmp_path: Path, kind: str, most: int) -> None:
    config, graph = model_of(kind)
    put(tmp_path, msgspec.structs.replace(config, dynamic_batching=Batching(max_batch_size=most)), graph)
    assert all(finding.well for finding in acceptance.check(tmp_path, "small"))


def test_the_shipped_models_are_well() -> None:
    for config in repository.list_models():
        findings = acceptance.check(repository.SHIPPED, config.name)
        assert all(finding.well for finding in findings), findings


def test_a_reference_of_another_model_is_a_complaint(tmp_path: Path) -> None:
    put(tmp_path, *model_of("features"))
    *_, without = acceptance.check(tmp_path, "small")
    assert without.well
    assert "none, so that drift is not watched" in without.detail
    (tmp_path / "small" / repository.REFERENCE).write_bytes(
        (repository.SHIPPED / "vitals" / repository.REFERENCE).read_bytes()
    )
    *_, wrong = acceptance.check(tmp_path, "small")
    assert (wrong.subject, wrong.well) == ("reference", False)
    assert "riskstream model reference small" in wrong.detail


def row_model(*nodes: object, **constants: object) -> tuple[ModelConfig, bytes]:
    """A model of kind features with the given nodes between `values` and `risk`."""
    graph = serialised(list(nodes), {"values": (len(FEATURES),)}, {"risk": ()}, constants)
    return model_of("features")[0], graph


CONSTANTS = {"one": np.array([1]), "trifle": np.float32(1e-6), "scale": np.float32(0.01)}


@pytest.mark.parametrize(
    ("nodes", "subject", "message"),
    [
        (
            [helper.make_node("ReduceMean", ["values", "one"], ["risk"], keepdims=0)],
            "outputs",
            "risk is not between 0 and 1",
        ),
        (
            [
                helper.make_node("ReduceMean", ["values", "one"], ["mean"], keepdims=0),
                helper.make_node("Sub", ["mean", "mean"], ["risk"]),
            ],
            "outputs",
            "every random row gets the same answer",
        ),
        (
            [
                helper.make_node("ReduceMin", ["values", "one"], ["least"], keepdims=0),
                helper.make_node("Div", ["least", "least"], ["risk"]),
            ],
            "hostile",
            "risk is not finite",
        ),
        (
            [
                helper.make_node("ReduceMean", ["values"], ["all"], keepdims=0),
                helper.make_node("ReduceMean", ["values", "one"], ["mean"], keepdims=0),
                helper.make_node("Sub", ["mean", "all"], ["offset"]),
                helper.make_node("Sigmoid", ["offset"], ["risk"]),
            ],
            "files",
            "golden-mismatch: small: risk differs from golden.npz by",
        ),
        (
            [
                helper.make_node("ReduceMean", ["values"], ["all"], keepdims=0),
                helper.make_node("Mul", ["all", "trifle"], ["company"]),
                helper.make_node("ReduceMean", ["values", "one"], ["mean"], keepdims=0),
                helper.make_node("Mul", ["mean", "scale"], ["own"]),
                helper.make_node("Add", ["own", "company"], ["score"]),
                helper.make_node("Sigmoid", ["score"], ["risk"]),
            ],
            "batches",
            "risk of a row differs between a batch of 64 and one of 1",
        ),
    ],
)
def test_what_is_wrong_is_found(tmp_path: Path, nodes: list[object], subject: str, message: str) -> None:
    put(tmp_path, *row_model(*nodes, **CONSTANTS))
    findings = {finding.subject: finding for finding in acceptance.check(tmp_path, "small")}
    assert not findings[subject].well
    assert message in findings[subject].detail


def test_a_changed_file_is_found(tmp_path: Path) -> None:
    put(tmp_path, *model_of("step"))
    graph = tmp_path / "small/1/model.onnx"
    graph.write_bytes(graph.read_bytes() + b" ")
    *_, last = acceptance.check(tmp_path, "small")
    assert (last.subject, last.well) == ("files", False)
    assert last.detail.startswith("digest-mismatch: ")


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    (finding,) = acceptance.check(tmp_path, "small")
    assert (finding.subject, finding.well) == ("config", False)


def test_nothing_is_left_of_a_graph_that_does_not_fit(tmp_path: Path) -> None:
    config, _ = model_of("features")
    with pytest.raises(GraphError):
        put(tmp_path, config, model_of("whole")[1])
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_a_version_that_is_there_is_kept(tmp_path: Path) -> None:
    put(tmp_path, *model_of("features"))
    before = (tmp_path / "small/1/model.onnx").read_bytes()
    with pytest.raises(RepositoryError, match="has version 1 already; raise `version` in"):
        put(tmp_path, *model_of("whole"))
    assert (tmp_path / "small/1/model.onnx").read_bytes() == before


@pytest.mark.parametrize("kind", KINDS)
def test_synthetic_inputs_fit_and_are_the_same_every_time(kind: str) -> None:
    engine = engine_of(kind)
    for made in (synthetic.inputs(engine, 7, seed=3), synthetic.hostile(engine)):
        engine.run(made)
        for array in made.values():
            assert np.isfinite(array).all()
    first, again = (synthetic.inputs(engine, 7, seed=3) for _ in range(2))
    assert all(first[name].tobytes() == again[name].tobytes() for name in first)
    engine.close()
