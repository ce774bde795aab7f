"""What the card of an image model says beside figures; see `engines.card_facts`."""

from collections.abc import Mapping
from typing import Any

from engines.card_facts import Facts
from schemas.model_config import ModelConfig


def pictures(config: ModelConfig, evaluation: Mapping[str, Any]) -> Facts:
    """Of a model that `riskstream model train imaging` made, whatever it was trained on.

    Args:
        config: of the model.
        evaluation: the content of its evaluation.json.
    """
    model, data, seen = evaluation["model"], evaluation["data"], evaluation["activation"]
    classes = ", ".join(config.classes)
    counts = ", ".join(f"{number:,} {name}" for name, number in data["classes"].items())
    held_out = data["validation"]["images"]
    in_validation = f"; {held_out:,} in validation" if held_out else "; none in validation"
    two = len(config.classes) == 2
    return Facts(
        title=f"{' or '.join(config.findings)}, from a picture",
        form=f"{model['members']} residual convolutional networks of {model['parameters']:,} weights each, "
        "averaged",
        inside="Normalisation, averaging, calibration, class-activation map.",
        output_value=f"The probability of each of {classes}, and a map of where each was seen.",
        output_type="A classification, with the probability of each class.",
        intended_use="A second look at pictures like those it learnt from, beside the radiologist's own "
        "reading, after validation, calibration and choice of thresholds on the hospital's own pictures; "
        "research, and demonstration of the worker.",
        intended_population="Patients like those of the pictures it learnt from.",
        intended_users="Radiologists and the physicians who ask for the pictures; the clinical data "
        "scientists and engineers who validate and run it for them.",
        decision_role="It informs: it points at a picture, and replaces neither reading nor decision.",
        cautioned=(
            "Ruling a finding out",
            "Ages, devices, views or body parts other than those of the data",
            "Measuring how far a disease has gone, or following it over time",
        ),
        limits=(
            "Pictures of one source: other devices, habits and patients shift the risks. Expect lower "
            "figures elsewhere, and lower ones on other patients of the same source",
            "The probability holds where all classes are equally frequent. Where a finding has the "
            "prevalence q, its odds are to be multiplied by q / (1 - q)",
            "The labels are those of the people who made the data; what they did not see is not in them",
            "The map shows where evidence was found, coarsely, not what it is: its rank correlation with "
            f"occlusion is {seen['rank_correlation']:.2f}",
        ),
        criteria=f"{data['source']}. {data['images']:,} pictures to learn from ({counts}); "
        f"{data['dropped']:,} more left out, {data['dropped_because']}{in_validation}. "
        "Golden data are synthetic.",
        relevance="A hospital's pictures come as they are made; those it learnt from were collected and "
        "labelled afterwards, and unclear ones may have been left out.",
        representativeness="Neither age, sex nor ethnicity is known of the pictures, nor any other of these "
        "variables.",
        fairness="Classes weigh the same in training and in calibration. Groups that the data name are "
        "judged apart; no group of patients by age, sex or ethnicity is named in them.",
        bias="No demographic variable is an input. A picture can still show sex, age and device, and what is "
        "not recorded could not be examined: nothing can be said of bias.",
        judged=(
            "The threshold is where two classes that weigh the same are told apart: fixed before training."
            if two
            else "The threshold is a half, fixed before training: the findings together are more likely than "
            "not. With several classes that is not where each weighs the same; choose it on your own "
            "pictures.",
        ),
        informed_by=(
            "Cross-validation on the pictures to learn from"
            + ("; nothing was learnt from validation" if held_out else "")
            + ". Pictures of a split called test stay closed",
            "Losses and calibration in which classes weigh the same, because their shares differ from source "
            "to source",
        ),
        tried=tuple(_compared(tried) for tried in evaluation.get("tried", ())),
        attribution=(data["source"],),
        reproduced="`riskstream model train imaging` on the same pictures makes every file of the folder "
        "again. On another kind of processor, or with another version of PyTorch, the last bits of the "
        "weights differ, and with them the digest and the last digits of the figures.",
    )


def _compared(tried: Mapping[str, Any]) -> str:
    this, served = tried["this"], tried["served"]
    return (
        f"{tried['recipe']}: AUROC {this['auroc']:.3f} and accuracy {this['accuracy']:.3f}, against "
        f"{served['auroc']:.3f} and {served['accuracy']:.3f} of the recipe that is served, one member each "
        "on the same pictures"
    )
