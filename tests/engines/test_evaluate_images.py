"""Judging image models: with a tiny real graph whose answers are known in advance."""

import csv
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from engines import activation, disturbances, evaluate_images, repository
from engines.engine import F32, Engine
from engines.errors import DatasetError, RepositoryError
from engines.labelled import LabelledImages
from schemas.model_config import Batching, ImageInput, Level, ModelConfig, Policy, Tensor
from tests.engines.conftest import config_of, graph
from tests.engines.pictures import folder, medmnist_file, tensors

CLASSES = ("nothing", "above", "below")
SIDE = 28
POLICY = Policy("1", (Level("elevated", 0.5),), 0.4, 0.0, 0.0, 0.2, 3600.0)


def blob_graph() -> bytes:
    """Evidence for "above" is light in the upper half, for "below" in the lower, for "nothing" a constant.

    activation = 7 x 7 averages of the pixels less 0.25, weighed by place; probability = softmax of sums.
    """
    classes = len(CLASSES)
    place = np.zeros((1, classes, 7, 7), dtype=np.float32)
    place[:, 1, :4] = 5
    place[:, 2, 4:] = 5
    offset = np.zeros((1, classes, 7, 7), dtype=np.float32)
    offset[:, 0] = 1.5 / 49
    inputs = [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, SIDE, SIDE])]
    outputs = [
        helper.make_tensor_value_info("probability", TensorProto.FLOAT, ["batch", classes]),
        helper.make_tensor_value_info("activation", TensorProto.FLOAT, ["batch", classes, 7, 7]),
    ]
    nodes = [
        helper.make_node("AveragePool", ["image"], ["mean"], kernel_shape=[4, 4], strides=[4, 4]),
        helper.make_node("Sub", ["mean", "dark"], ["light"]),
        helper.make_node("Relu", ["light"], ["bright"]),
        helper.make_node("Mul", ["bright", "place"], ["placed"]),
        helper.make_node("Add", ["placed", "offset"], ["activation"]),
        helper.make_node("ReduceSum", ["activation", "axes"], ["logits"], keepdims=0),
        helper.make_node("Softmax", ["logits"], ["probability"], axis=1),
    ]
    constants = [
        numpy_helper.from_array(np.float32(0.25), "dark"),
        numpy_helper.from_array(place, "place"),
        numpy_helper.from_array(offset, "offset"),
        numpy_helper.from_array(np.array([2, 3]), "axes"),
    ]
    made = helper.make_graph(nodes, "blobs", inputs, outputs, constants)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    return bytes(model.SerializeToString())


def image_config(content: bytes, classes: tuple[str, ...] = CLASSES) -> ModelConfig:
    return ModelConfig(
        name="blobs",
        kind="image",
        version=1,
        outcome="a blob",
        input=(Tensor("image", (1, SIDE, SIDE)),),
        output=(Tensor("probability", (len(classes),)), Tensor("activation", (len(classes), 7, 7))),
        digest=hashlib.sha256(content).hexdigest(),
        policy=POLICY,
        image=ImageInput(height=SIDE, width=SIDE),
        classes=classes,
        findings=classes[1:],
        dynamic_batching=Batching(max_batch_size=16),
    )


@pytest.fixture(scope="module")
def engine() -> Engine:
    content = blob_graph()
    return repository.open_engine(image_config(content), content)


@pytest.fixture
def pictures(tmp_path: Path) -> LabelledImages:
    path = medmnist_file(tmp_path / "x.npz", {"test": 90}, classes=3)
    return evaluate_images.read_source(f"medmnist:{path}")


def test_the_report_on_a_served_model(engine: Engine, pictures: LabelledImages) -> None:
    told: list[tuple[str, int, int]] = []
    batches: list[int] = []
    probability = evaluate_images.predict(engine, pictures, batches.append)
    assert sum(batches) == 90
    assert probability.shape == (90, 3)
    content = evaluate_images.assess_served(engine, pictures, probability, lambda *step: told.append(step))
    assert json.loads(json.dumps(content)) == content
    assert content["judged"]["n"] == 90
    assert content["judged"]["positives"] == 60
    assert content["judged"]["auroc"] == 1.0
    assert content["threshold"] == 0.5
    assert content["class_accuracy"] > 0.9
    assert sum(content["confusion"]["below"].values()) == 30
    assert content["classes"].keys() == set(CLASSES)
    assert content["data"]["splits"] == {"test": 90}
    assert [row["disturbance"] for row in content["robustness"]] == list(disturbances.DISTURBANCES)
    assert content["robustness"][0]["judged"]["auroc"] == 1.0
    assert content["activation"]["rank_correlation"] > 0.3
    assert content["activation"]["pointing"] > 5 * content["activation"]["pointing_by_chance"]
    assert ("disturbing pictures", 10, 10) in told


def test_served_one_by_one_or_together_is_the_same(engine: Engine, pictures: LabelledImages) -> None:
    together = evaluate_images.predict(engine, pictures)
    alone = [evaluate_images.predict(engine, pictures.subset(np.array([n]))) for n in (0, 17, 89)]
    np.testing.assert_array_equal(np.concatenate(alone), together[[0, 17, 89]])


def test_predictions_as_csv(engine: Engine, pictures: LabelledImages, tmp_path: Path) -> None:
    probability = evaluate_images.predict(engine, pictures)
    path = tmp_path / "new" / "p.csv"
    evaluate_images.write_predictions(pictures, probability, engine.config, path)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["image", "split", *CLASSES, "risk"]
    assert [row["image"] for row in rows[:3]] == ["0", "1", "2"]
    for row, shares in zip(rows, probability, strict=True):
        assert float(row["risk"]) == pytest.approx(float(shares[1:].sum()), abs=1e-6)


def test_a_folder_is_judged_by_the_names_of_its_classes(engine: Engine, tmp_path: Path) -> None:
    """Sorted names are in another order than the model's, and one class does not occur."""
    groups = [str(number // 2 % 2) for number in range(40)]
    images = evaluate_images.read_source(
        f"images:{folder(tmp_path, {'nothing': 0, 'above': 1}, 20, 40, group=groups)}"
    )
    content = evaluate_images.assess_served(engine, images, evaluate_images.predict(engine, images))
    assert content["judged"]["auroc"] == 1.0
    assert content["classes"]["below"] is None
    assert [row["group"] for row in content["subgroups"]] == ["1", "2"]
    assert all(row["judged"]["auroc"] == 1.0 for row in content["subgroups"])
    assert content["data"]["groups"] == 2


def test_groups_that_are_all_too_small_are_left_out(engine: Engine, tmp_path: Path) -> None:
    patients = [str(number // 4) for number in range(40)]
    images = evaluate_images.read_source(
        f"images:{folder(tmp_path, {'nothing': 0, 'above': 1}, 20, 40, group=patients)}"
    )
    content = evaluate_images.assess_served(engine, images, evaluate_images.predict(engine, images))
    assert content["subgroups"] == []
    assert content["data"]["groups"] == 10


def test_what_cannot_be_judged(engine: Engine, pictures: LabelledImages) -> None:
    healthy = pictures.subset(np.flatnonzero(pictures.labels == 0))
    with pytest.raises(DatasetError, match="with a finding and pictures without"):
        evaluate_images.assess_served(engine, healthy, evaluate_images.predict(engine, healthy))
    content = graph()
    series = repository.open_engine(config_of(content), content)
    with pytest.raises(RepositoryError, match="no image model"):
        evaluate_images.predict(series, pictures)


def test_risk_is_what_the_findings_share(engine: Engine) -> None:
    probability = np.array([[0.2, 0.3, 0.5], [1, 0, 0]], dtype=np.float32)
    np.testing.assert_allclose(evaluate_images.risk_of(engine.config, probability), [0.8, 0], atol=1e-7)


def test_evidence_and_occlusion_point_at_the_blob(engine: Engine) -> None:
    images, labels = tensors(6, SIDE, classes=3)
    image = images[labels == 1][:1]
    found = evaluate_images.run_images(engine, image)
    seen = activation.evidence(engine.config, found["probability"], found["activation"])[0]
    y, x = np.unravel_index(int(image[0, 0].argmax()), (SIDE, SIDE))
    row, column = np.unravel_index(int(seen.argmax()), seen.shape)
    assert abs(row - y // 4) <= 1
    assert abs(column - x // 4) <= 1
    drop = activation.occlusion(engine.config, lambda t: evaluate_images.run_images(engine, t), image[0])
    top, bottom, left, right = activation._boxes(SIDE, SIDE)[int(drop.argmax())]
    assert top - 2 <= y <= bottom + 2
    assert left - 2 <= x <= right + 2


@pytest.mark.parametrize("disturb", disturbances.DISTURBANCES.values(), ids=disturbances.DISTURBANCES)
def test_disturbances_leave_pictures_pictures(disturb: Callable[[F32], F32]) -> None:
    images, _ = tensors(3, 20)
    before = images.copy()
    made = disturb(images)
    assert made.shape == images.shape
    assert made.dtype == np.float32
    assert 0 <= made.min() <= made.max() <= 1
    np.testing.assert_array_equal(images, before)
    np.testing.assert_array_equal(disturb(images), made)


def test_a_turn_and_its_opposite_undo_each_other() -> None:
    y, x = np.mgrid[0:32, 0:32] / 32
    smooth = ((np.sin(4 * x) + np.cos(3 * y) + 2) / 4).astype(np.float32)[None, None]
    back = disturbances.turned(-7)(disturbances.turned(7)(smooth))
    np.testing.assert_allclose(back[:, :, 6:-6, 6:-6], smooth[:, :, 6:-6, 6:-6], atol=0.01)
    moved: Any = disturbances.turned(90)(smooth)
    np.testing.assert_allclose(moved[0, 0], np.rot90(smooth[0, 0], -1), atol=1e-5)
