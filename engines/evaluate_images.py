"""How good an image model is on pictures of known class; numpy and the engine only.

The risk of a picture is the sum of the probabilities of the classes that are findings.
"""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines import image_folder, judge, medmnist
from engines.activation import check_activation
from engines.disturbances import DISTURBANCES
from engines.engine import F32, Engine
from engines.errors import DatasetError, RepositoryError
from engines.labelled import LabelledImages
from schemas.model_config import ModelConfig

BLOCK = 64
"""Pictures a run: what one holds in memory, 13 MB of grey 224 x 224 pixels."""

PROBED = 1000
"""Pictures that are scored again under each disturbance, spread over the whole set."""

FEWEST = 10
"""Pictures with, and without, a finding that a group must have before it is judged by itself."""

MOST_GROUPS = 20
"""Groups that are judged one by one."""

DEFINITIONS = judge.FIGURES | {
    "risk": "sum of the probabilities of the findings; positives are the pictures whose class is a finding",
    "threshold": "where the alert policy's first level enters, fixed before any of these pictures were seen",
    "classes": "each class against all others",
    "confusion": "pictures by their class (row) and by the most probable class (column)",
    "class_accuracy": "share of pictures whose most probable class is their own",
}

LEARNT = (
    "The pictures are of the split train: a model that learnt from them is far better on them than on others."
)

Score = Callable[[NDArray[np.intp], F32], F32]
"""Class probabilities float32[n, classes] of pictures: their numbers in the set, and their tensors."""


def is_source(argument: str) -> bool:
    """Whether this names pictures."""
    return argument.startswith((medmnist.PREFIX, image_folder.PREFIX))


def open_source(argument: str, *, labelled: bool = True) -> LabelledImages:
    """All pictures of `medmnist:FILE` or `images:DIR`; also those of no known class, unless `labelled`.

    Raises:
        DatasetError: the argument is written otherwise, or the data cannot be read.
    """
    for prefix, read in ((medmnist.PREFIX, medmnist.read), (image_folder.PREFIX, image_folder.read)):
        if argument.startswith(prefix) and argument != prefix:
            return read(Path(argument.removeprefix(prefix)).expanduser(), labelled=labelled)
    raise DatasetError(f"pictures are written {medmnist.PREFIX}FILE or {image_folder.PREFIX}DIR")


def read_source(argument: str, split: str | None = None, *, labelled: bool = True) -> LabelledImages:
    """The pictures to judge a model on: the split that is named, else test, else val, else all.

    Raises:
        DatasetError: as `open_source`; or there is no such split.
    """
    return open_source(argument, labelled=labelled).to_judge(split)


def threshold_of(config: ModelConfig) -> float:
    """The risk at or above which a picture counts as a finding, as shipped."""
    return config.policy.levels[0].enter


def risk_of(config: ModelConfig, probability: F32) -> NDArray[np.float64]:
    """float64[images], of probability float32[images, classes]."""
    index = [config.classes.index(finding) for finding in config.findings]
    return np.asarray(np.minimum(probability[:, index].astype(np.float64).sum(axis=1), 1.0))


def run_images(engine: Engine, tensors: F32) -> dict[str, F32]:
    """All outputs for float32[images, channels, height, width], in blocks."""
    block = min(BLOCK, engine.config.dynamic_batching.max_batch_size)
    parts = [engine.run({"image": tensors[start : start + block]}) for start in range(0, len(tensors), block)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def predict(engine: Engine, images: LabelledImages, on_batch: Callable[[int], None] = lambda _: None) -> F32:
    """Class probabilities, float32[images, classes], of the pictures as the engine serves them.

    Args:
        engine: of an image model.
        images: decoded and prepared here, a block at a time.
        on_batch: told how many more are done.

    Raises:
        DatasetError: a picture cannot be decoded.
        RepositoryError: the model is no image model.
    """
    wanted = engine.config.image
    if wanted is None:
        raise RepositoryError(f"{engine.config.name} is no image model: it cannot score pictures")
    found = np.zeros((len(images), len(engine.config.classes)), dtype=np.float32)
    for start in range(0, len(images), BLOCK):
        tensors = images.tensors(wanted, first=start, end=start + BLOCK)
        found[start : start + BLOCK] = run_images(engine, tensors)["probability"]
        on_batch(len(tensors))
    return found


def write_predictions(images: LabelledImages, probability: F32, config: ModelConfig, path: Path) -> None:
    """A CSV of image (its number, or its row in labels.csv), split, a column a class, and risk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    splits = images.splits or ("",) * len(images)
    risks = risk_of(config, probability)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("image", "split", *config.classes, "risk"))
        for name, split, shares, risk in zip(images.names, splits, probability, risks, strict=True):
            writer.writerow((name, split, *(f"{share:.7g}" for share in shares), f"{risk:.7g}"))


def assess_served(
    engine: Engine,
    images: LabelledImages,
    probability: F32,
    on_step: Callable[[str, int, int], None] = lambda *_: None,
) -> dict[str, Any]:
    """The report on a served model: `assess_images`, and the check of its activation map.

    Raises:
        DatasetError: as `assess_images`.
    """
    config = engine.config
    assert config.image is not None
    images = images.named(config.classes)
    content: dict[str, Any] = {
        "model": {
            "name": config.name,
            "version": config.version,
            "digest": config.digest,
            "outcome": config.outcome,
        },
        "data": described(images),
        "method": "the served engine, on the pictures of "
        f"{' and '.join(sorted(set(images.splits))) or 'the whole set'}",
    }
    if "train" in images.splits:
        content["verdict"] = [LEARNT]
    content |= assess_images(
        config, images, probability, lambda _, tensors: run_images(engine, tensors)["probability"], on_step
    )
    if any(tensor.name == "activation" for tensor in config.output):
        chosen = images.subset(_spread(len(images), 48)).tensors(config.image)
        content["activation"] = check_activation(config, lambda t: run_images(engine, t), chosen, on_step)
    return content


def assess_images(
    config: ModelConfig,
    images: LabelledImages,
    probability: F32,
    score: Score,
    on_step: Callable[[str, int, int], None] = lambda *_: None,
) -> dict[str, Any]:
    """Figures of class probabilities, as the report page takes them.

    Args:
        config: of an image model; its first policy level is the threshold.
        images: with known classes.
        probability: float32[images, classes], of the pictures as they are.
        score: scores disturbed pictures in the same way.
        on_step: told (what, done, of).

    Returns:
        "kind", "threshold", "judged" (risk against finding), "classes" (each against the others),
        "class_accuracy", "confusion", "subgroups", "robustness", "metrics".

    Raises:
        DatasetError: a picture is of an unknown class, or all or none have a finding.
    """
    images = images.named(config.classes)
    truth = is_finding(config, images)
    if not 0 < int(truth.sum()) < len(truth):
        raise DatasetError("figures need pictures with a finding and pictures without one")
    risk, threshold = risk_of(config, probability), threshold_of(config)
    return {
        "kind": "image",
        "threshold": threshold,
        "judged": judge.judged(truth, risk, threshold),
        "findings": list(config.findings),
        "classes": _each_class(config, images.labels, probability),
        "class_accuracy": round(float(np.mean(probability.argmax(axis=1) == images.labels)), 4),
        "confusion": _confusion(config, images.labels, probability),
        "subgroups": _subgroups(images, truth, risk, threshold),
        "robustness": _robustness(config, images, score, on_step),
        "metrics": DEFINITIONS,
    }


def described(images: LabelledImages) -> dict[str, Any]:
    """Counts of a set, for a report."""
    numbers = np.bincount(images.labels, minlength=len(images.classes))
    return {
        "source": images.source,
        "images": len(images),
        "judged": len(images),
        "classes": {name: int(number) for name, number in zip(images.classes, numbers, strict=True)},
        "splits": {split: images.splits.count(split) for split in sorted(set(images.splits))},
        "groups": len(set(images.groups)) or None,
    }


def is_finding(config: ModelConfig, images: LabelledImages) -> NDArray[np.int64]:
    """1 where the class of the picture is a finding, int64[images]."""
    index = [config.classes.index(finding) for finding in config.findings]
    return np.isin(images.labels, index).astype(np.int64)


def _each_class(config: ModelConfig, labels: NDArray[np.int64], probability: F32) -> dict[str, Any]:
    """Each class against the others; None where it does not occur, or nothing else does."""
    found: dict[str, Any] = {}
    for number, name in enumerate(config.classes):
        truth = (labels == number).astype(np.int64)
        both = 0 < int(truth.sum()) < len(truth)
        found[name] = judge.judged(truth, probability[:, number], 0.5, curves=False) if both else None
    return found


def _confusion(config: ModelConfig, labels: NDArray[np.int64], probability: F32) -> dict[str, dict[str, int]]:
    table = np.zeros((len(config.classes),) * 2, dtype=np.int64)
    np.add.at(table, (labels, probability.argmax(axis=1)), 1)
    return {
        name: {other: int(number) for other, number in zip(config.classes, row, strict=True)}
        for name, row in zip(config.classes, table, strict=True)
    }


def _subgroups(
    images: LabelledImages, truth: NDArray[np.int64], risk: NDArray[np.float64], threshold: float
) -> list[dict[str, Any]]:
    """By group of the source, where they are few: hospitals or devices rather than patients.

    They are numbered in the order of their names, which may be a patient's. None where each is too small.
    """
    groups = sorted(set(images.groups))
    if not 1 < len(groups) <= MOST_GROUPS:
        return []
    found = []
    for number, group in enumerate(groups, start=1):
        inside = np.array([name == group for name in images.groups])
        here, positives = truth[inside], int(truth[inside].sum())
        enough = FEWEST <= positives <= len(here) - FEWEST
        judged = judge.judged(here, risk[inside], threshold, curves=False) if enough else None
        found.append(
            {"by": "group", "group": str(number), "n": len(here), "positives": positives, "judged": judged}
        )
    return found if any(one["judged"] for one in found) else []


def _robustness(
    config: ModelConfig, images: LabelledImages, score: Score, on_step: Callable[[str, int, int], None]
) -> list[dict[str, Any]]:
    """The figures again, on the pictures disturbed in one way at a time."""
    assert config.image is not None
    index = _spread(len(images), PROBED)
    truth = is_finding(config, images)[index]
    if not 0 < int(truth.sum()) < len(truth):
        return []
    tensors = images.subset(index).tensors(config.image)
    found = []
    for done, (name, disturb) in enumerate(DISTURBANCES.items(), start=1):
        risk = risk_of(config, score(index, disturb(tensors)))
        judged = judge.judged(truth, risk, threshold_of(config), curves=False)
        found.append({"disturbance": name, "judged": judged})
        on_step("disturbing pictures", done, len(DISTURBANCES))
    return found


def _spread(count: int, most: int) -> NDArray[np.intp]:
    """At most `most` numbers below `count`, at even distances."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.intp))
