"""The card of an image model, written from its figures."""

from pathlib import Path
from typing import Any

from engines.repository import CARD
from schemas.model_config import ModelConfig

TEMPLATE = """\
# {name}, version {version}

**Not for clinical use without local validation.** No hospital has tried this model.

| | |
|---|---|
| predicts | {outcome}: the probability of each of {classes} |
| reads | one picture, {height} x {width} pixels, {colour}; other sizes are made to fit (`{fit}`) |
| form | {members} residual convolutional networks of {parameters:,} weights each, averaged |
| inside the graph | normalisation, averaging, calibration, class-activation map |
| digest | `{digest}` |

## Intended use
A second look at pictures like those it learnt from, beside the radiologist's own reading, after validation,
calibration and choice of thresholds on the hospital's own pictures. Research and demonstration of the worker.
Not for ruling a finding out, not for other ages, devices, views or body parts than those of the data.

## Data
{source}. {images:,} pictures to learn from ({counts}); {dropped} more were left out because
they also stand in validation; {held_out:,} in validation. Golden data are synthetic.

## How it was judged
{method}

| | pictures | AUROC | accuracy | sensitivity | specificity | ECE |
|---|---|---|---|---|---|---|
{figures}

In brackets: 95% bootstrap intervals. Threshold {threshold}: where classes that weigh the same are told apart,
fixed before training. {validation_note}

## Limits
- Pictures of one source: other devices, habits and patients shift the risks. Expect lower figures
  elsewhere than those above, and lower ones on other patients of the same source.
- The probability holds where all classes are equally frequent. Where a finding has the prevalence q, the
  odds are to be multiplied by q / (1 - q).
- The labels are those of the people who made the data; what they did not see is not in them.
- The activation map shows where evidence was found, coarsely, not what it is: its rank correlation with
  occlusion is {correlation}.
- Neither age, sex nor ethnicity is known of the pictures: nothing can be said of fairness.
"""


def write(folder: Path, config: ModelConfig, evaluation: dict[str, Any]) -> None:
    """Write MODEL_CARD.md."""
    (folder / CARD).write_text(text(config, evaluation))


def text(config: ModelConfig, evaluation: dict[str, Any]) -> str:
    """The card in Markdown."""
    assert config.image is not None
    data, model, validation = evaluation["data"], evaluation["model"], evaluation.get("validation")
    rows = [_row("cross-validation, one member", evaluation["judged"])]
    rows += [_row("validation, the served model", validation)] if validation else []
    return TEMPLATE.format(
        name=config.name,
        version=config.version,
        outcome=config.outcome,
        classes=", ".join(config.classes),
        height=config.image.height,
        width=config.image.width,
        colour="grey" if config.image.channels == 1 else "colour",
        fit=config.image.fit,
        members=model["members"],
        parameters=model["parameters"],
        digest=config.digest,
        source=data["source"],
        images=data["images"],
        counts=", ".join(f"{number:,} {name}" for name, number in data["classes"].items()),
        dropped=data["dropped"],
        held_out=data["validation"]["images"],
        method=evaluation["method"],
        figures="\n".join(rows),
        threshold=evaluation["threshold"],
        validation_note="" if validation else "There were no validation pictures of both kinds.",
        correlation=evaluation["activation"]["rank_correlation"],
    )


def _row(name: str, judged: dict[str, Any]) -> str:
    cells = []
    for figure in ("auroc", "accuracy", "sensitivity", "specificity", "ece"):
        low, high = judged["intervals"][figure]
        cells.append(f"{judged[figure]:.3f} ({low:.3f} to {high:.3f})")
    return f"| {name} | {judged['n']:,} | " + " | ".join(cells) + " |"
