"""Makes an image model: cross-validation, calibration, and the folder that is served.

The pictures to learn from are divided into as many parts as there are members; each member learns from all
parts but one, for a fixed number of epochs, and that part judges it: nothing of a picture's own part has a
say in its figures. All members together are the model; it is judged on the validation pictures, from which
nothing is learnt or chosen. Classes weigh the same in training and in calibration, so a probability holds
where all classes are equally frequent.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from engines import card, evaluate, judge, report, repository, staging
from engines.activation import check_activation
from engines.engine import F32
from engines.evaluate_images import (
    assess_images,
    described,
    is_finding,
    risk_of,
    run_images,
    threshold_of,
)
from engines.labelled import LabelledImages
from engines.repository import CONFIG, EVALUATION, GOLDEN, GRAPH, PAGE
from engines.train import image_export, image_facts
from engines.train.image_fit import Recipe, logits
from engines.train.image_members import Pictures, Task, train_members
from engines.train.image_network import Ensemble, Member
from engines.train.image_parts import Material, Progress, check_classes, divided, material
from schemas.model_config import Batching, ImageInput, Level, ModelConfig, Policy, Tensor

POLICY = Policy(
    version="1",
    levels=(Level("elevated", 0.5), Level("high", 0.9)),
    exit=0.4,
    resolve_s=0.0,
    refractory_s=4 * 3600.0,
    update_delta=0.2,
    expiry_s=48 * 3600.0,
)
"""A half is where classes that weigh the same are told apart: fixed before training."""

CHECKED = 48
"""Validation pictures on which the activation map is compared with occlusion."""


RECIPE = Recipe()

MEMBERS = 5


@dataclass(frozen=True, slots=True)
class Plan:
    """How a model is trained; `processes` changes the time alone.

    compared: recipes, by name, that one more member each is trained with, for the report.
    """

    recipe: Recipe = RECIPE
    members: int = MEMBERS
    seed: int = 2018
    processes: int = 2
    compared: tuple[tuple[str, Recipe], ...] = ()


class Subject(NamedTuple):
    """What the model is to be: its name, its input, and what of the classes is a finding."""

    name: str
    image: ImageInput
    classes: tuple[str, ...]
    findings: tuple[str, ...]


class Result(NamedTuple):
    """What training found.

    parts: int64[images], the part of each picture learnt from.
    out_of_part: float32[images, classes], logits of the member that never saw the picture.
    """

    members: list[Member]
    parts: NDArray[np.int64]
    out_of_part: F32
    compared: list[Member]


def variations(recipe: Recipe) -> tuple[tuple[str, Recipe], ...]:
    """Recipes that were thought of, to be compared with the one that is used."""
    return (("mixup: pairs of pictures mixed, beta distribution of 0.2", replace(recipe, mixup=0.2)),)


def train(
    images: LabelledImages,
    out: Path,
    subject: Subject,
    plan: Plan,
    progress: Progress,
    command: str = "riskstream model train imaging",
    *,
    replace: bool = False,
) -> dict[str, Any]:
    """Train, judge and write the model folder `out`/name, or its next version beside those that it has.

    Args:
        images: pictures with splits, or all to be learnt from; those of the split test stay closed.
        out: the model repository.
        subject: what to make.
        plan: how.
        progress: told (what, done, of).
        command: what makes the folder again, for the report.
        replace: put it in place of the model of that name instead.

    Returns:
        The content of evaluation.json.

    Raises:
        RepositoryError, KindError: as `staging.staged`, before anything is read.
        DatasetError: a picture cannot be read, or a class has too few.
    """
    with staging.staged(out, subject.name, "image", replace=replace) as into:
        found = material(images.named(subject.classes), subject.image, progress)
        check_classes(found, plan.members)
        result = _trained(found, plan, progress)
        return _write(into, subject, found, result, plan, progress, command)


def _trained(found: Material, plan: Plan, progress: Progress) -> Result:
    labels = found.images.labels
    parts = divided(labels, found.groups, plan.members, plan.seed)
    recipes = [plan.recipe] * plan.members + [recipe for _, recipe in plan.compared]
    tasks = [
        Task(recipe, np.flatnonzero(parts != number % plan.members), plan.seed + number % plan.members)
        for number, recipe in enumerate(recipes)
    ]
    done = 0

    def on_epoch() -> None:
        nonlocal done
        done += 1
        progress("training", done, sum(recipe.epochs for recipe in recipes))

    pictures = Pictures(found.tensors, labels, len(found.images.classes))
    members = train_members(pictures, tasks, plan.processes, on_epoch)
    out_of_part = np.empty((len(labels), pictures.classes), dtype=np.float32)
    for number, member in enumerate(members[: plan.members]):
        held = parts == number
        out_of_part[held] = logits(member, found.tensors[held])
    return Result(members[: plan.members], parts, out_of_part, members[plan.members :])


def _write(
    into: staging.Staged,
    subject: Subject,
    found: Material,
    result: Result,
    plan: Plan,
    progress: Progress,
    command: str,
) -> dict[str, Any]:
    folder = into.folder
    factor = temperature(result.out_of_part, found.images.labels)
    ensemble = Ensemble(result.members, factor)
    graph = image_export.to_onnx(ensemble, subject.image.dims)
    digest = hashlib.sha256(graph).hexdigest()
    config = config_of(subject, digest, ensemble.map_dims(subject.image.dims), into.version)
    evaluation = _evaluation(config, graph, found, result, plan, progress) | {
        "calibration": {"factor": factor},
        "reproduce": evaluate.reproduction(command, ("numpy", "onnxruntime", "onnx", "torch", "pillow")),
    }
    version = folder / str(into.version)
    version.mkdir()
    (version / GRAPH).write_bytes(graph)
    golden = image_export.golden(ensemble, image_export.synthetic_images(subject.image.dims))
    (version / GOLDEN).write_bytes(golden)
    (folder / CONFIG).write_bytes(evaluate.pretty(config))
    (folder / EVALUATION).write_bytes(evaluate.pretty(evaluation))
    card.write(folder, config, evaluation, image_facts.pictures(config, evaluation))
    report.write_page(evaluation, folder / PAGE, folder)
    return evaluation


def _evaluation(
    config: ModelConfig, graph: bytes, found: Material, result: Result, plan: Plan, progress: Progress
) -> dict[str, Any]:
    labels, parts = found.images.labels, result.parts
    probability = np.empty_like(result.out_of_part)
    factors = []
    for number in range(plan.members):
        inside = parts == number
        factors.append(temperature(result.out_of_part[~inside], labels[~inside]))
        probability[inside] = _softmax(result.out_of_part[inside] * factors[number])

    def score(index: NDArray[np.intp], tensors: F32) -> F32:
        scored = np.empty((len(index), len(config.classes)), dtype=np.float32)
        for number, member in enumerate(result.members):
            inside = parts[index] == number
            if inside.any():
                scored[inside] = _softmax(logits(member, tensors[inside]) * factors[number])
        return scored

    content: dict[str, Any] = {
        "model": {
            "name": config.name,
            "version": config.version,
            "digest": config.digest,
            "members": plan.members,
            "parameters": sum(weight.numel() for weight in result.members[0].parameters()),
            "recipe": msgspec.to_builtins(plan.recipe),
        },
        "data": described(found.images)
        | {
            "validation": described(found.held_out),
            "dropped": found.dropped,
            "dropped_because": "pictures to learn from that also stand in validation, to the last bit",
        },
        "method": f"{plan.members}-fold cross-validation (seed {plan.seed}), classes spread evenly and "
        f"{'groups' if found.images.groups else 'identical pictures'} kept together: each picture is judged "
        "by the one member that did not learn from it, calibrated on the other parts. The model served "
        "averages all members"
        + (
            "; `validation` judges it on pictures from which nothing was learnt"
            if len(found.held_out)
            else ""
        )
        + (
            "."
            if found.images.groups
            else ". Patients are not named: pictures of one may stand on both sides."
        ),
    }
    content |= assess_images(config, found.images, probability, score, progress)
    engine = repository.open_engine(config, graph)
    try:
        content |= _held_out(config, found, partial(run_images, engine), progress)
    finally:
        engine.close()
    return content | {"drift": _drift(found, content), "tried": _tried(config, found, result, plan)}


def _held_out(
    config: ModelConfig, found: Material, run: Callable[[F32], dict[str, F32]], progress: Progress
) -> dict[str, Any]:
    """The served graph on validation, and its map against occlusion there (else on what was learnt from)."""
    tensors = found.held_out_tensors if len(found.held_out) else found.tensors
    index = np.unique(np.linspace(0, len(tensors) - 1, min(len(tensors), CHECKED)).round().astype(np.intp))
    content: dict[str, Any] = {"activation": check_activation(config, run, tensors[index], progress)}
    truth = is_finding(config, found.held_out)
    if not 0 < int(truth.sum()) < len(truth):
        return content
    probability = run(tensors)["probability"]
    judged = judge.judged(truth, risk_of(config, probability), threshold_of(config))
    accuracy = round(float(np.mean(probability.argmax(axis=1) == found.held_out.labels)), 4)
    return content | {"validation": judged, "validation_class_accuracy": accuracy}


def _drift(found: Material, content: dict[str, Any]) -> dict[str, Any] | None:
    """How far validation lies from what was learnt from: brightness, contrast, share of findings, ranking."""
    if "validation" not in content:
        return None
    sets = {"train": found.tensors, "validation": found.held_out_tensors}
    brightness = {name: tensors.mean(axis=(1, 2, 3)) for name, tensors in sets.items()}
    contrast = {name: tensors.std(axis=(1, 2, 3)) for name, tensors in sets.items()}
    judged = {"train": content["judged"], "validation": content["validation"]}
    return {
        "brightness_ks": _kolmogorov_smirnov(*brightness.values()),
        "contrast_ks": _kolmogorov_smirnov(*contrast.values()),
        "ks_of_equal_sets": round(1.36 * (1 / len(found.tensors) + 1 / len(found.held_out)) ** 0.5, 4),
        "share_of_findings": {
            name: round(found["positives"] / found["n"], 4) for name, found in judged.items()
        },
        "auroc": {name: found["auroc"] for name, found in judged.items()},
    }


def _kolmogorov_smirnov(one: F32, other: F32) -> float:
    """Greatest distance of two distribution functions."""
    at = np.sort(np.concatenate([one, other]))
    gap = [np.searchsorted(np.sort(side), at, side="right") / len(side) for side in (one, other)]
    return round(float(np.abs(gap[0] - gap[1]).max()), 4)


def _tried(config: ModelConfig, found: Material, result: Result, plan: Plan) -> list[dict[str, Any]]:
    """Other recipes beside the one that is served: one member each, judged on the same part."""
    tried = []
    for number, (name, _) in enumerate(plan.compared):
        part = number % plan.members
        held = result.parts == part
        truth = is_finding(config, found.images)[held]
        if not 0 < int(truth.sum()) < len(truth):
            continue
        judged = {}
        for who, member in (("this", result.compared[number]), ("served", result.members[part])):
            factor = temperature(logits(member, found.tensors[held]), found.images.labels[held])
            risk = risk_of(config, _softmax(factor * logits(member, found.tensors[held])))
            judged[who] = judge.judged(truth, risk, threshold_of(config), curves=False)
        tried.append({"recipe": name, "part": part, **judged})
    return tried


def temperature(found: F32, labels: NDArray[np.int64]) -> float:
    """The factor on the logits that makes them least surprised, classes weighing the same.

    Args:
        found: float32[images, classes], logits of pictures not learnt from.
        labels: int64[images].

    Returns:
        From 0.1 to 10; found by golden section, for the loss is convex in the factor.
    """
    share = np.bincount(labels, minlength=found.shape[1])[labels]
    weight = 1 / (share * len(np.unique(labels)))
    rows = np.arange(len(labels))

    def loss(log_factor: float) -> float:
        scaled = found.astype(np.float64) * np.exp(log_factor)
        top = scaled.max(axis=1, keepdims=True)
        total = np.log(np.exp(scaled - top).sum(axis=1)) + top[:, 0]
        return float(np.sum(weight * (total - scaled[rows, labels])))

    low, high = np.log(0.1), np.log(10.0)
    ratio = (5**0.5 - 1) / 2
    for _ in range(40):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, right) if loss(left) <= loss(right) else (left, high)
    return round(float(np.exp((low + high) / 2)), 6)


def config_of(
    subject: Subject, digest: str, map_dims: tuple[int, int], version: int = staging.FIRST
) -> ModelConfig:
    """The config of a graph: its tensors, its classes, its policy."""
    classes = len(subject.classes)
    return ModelConfig(
        name=subject.name,
        kind="image",
        version=version,
        outcome=f"{' or '.join(subject.findings)}, as those who labelled the pictures saw it",
        input=(Tensor("image", subject.image.dims),),
        output=(Tensor("probability", (classes,)), Tensor("activation", (classes, *map_dims))),
        digest=digest,
        policy=POLICY,
        image=subject.image,
        classes=subject.classes,
        findings=subject.findings,
        dynamic_batching=Batching(max_batch_size=64),
    )


def _softmax(found: F32) -> F32:
    raised = np.exp(found - found.max(axis=1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=1, keepdims=True), dtype=np.float32)
