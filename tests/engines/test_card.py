"""The model cards: every source attribute stands in them, with the evaluation's figures and nothing else."""

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import numpy as np
import pytest

from engines import card, evaluate, judge
from engines.baselines import Baseline
from engines.card import WARNING
from engines.card_facts import Facts
from engines.repository import CARD, MODEL_CARD
from engines.train import facts as shipped
from engines.train import image_facts
from schemas import json_schema
from schemas.model_card import ATTRIBUTES, VARIABLES, ModelCard
from schemas.model_config import Forecast, ImageInput, Level, ModelConfig, Policy, Tensor
from tests.engines.test_baselines import made_outcomes, made_rows

POLICY = Policy(
    "7", (Level("elevated", 0.2, 3600.0), Level("high", 0.5)), 0.14, 7200.0, 14400.0, 0.1, 43200.0
)
STAYS = made_rows(120)
DIED = made_outcomes(STAYS)


def config_of(*features: str) -> ModelConfig:
    return ModelConfig(
        name="small",
        kind="windowed-series",
        version=3,
        outcome="death in hospital",
        input=(Tensor("values", (len(features),)),),
        output=(Tensor("risk", ()),),
        digest="0" * 64,
        policy=POLICY,
        features=features,
    )


@pytest.fixture(scope="module")
def evaluation() -> dict[str, Any]:
    """A real evaluation of made-up risks."""
    rng = np.random.default_rng(5)
    risks = np.clip(0.3 * DIED[:, None] + rng.uniform(0, 0.6, (len(DIED), 48)), 0, 1)
    worse = np.clip(risks + rng.normal(0, 0.2, risks.shape), 0, 1).astype(np.float32)
    made = evaluate.assess(
        STAYS,
        DIED,
        risks,
        0.4,
        features=("age", "sex", "gcs"),
        baselines={"boosting": Baseline(worse, True)},
        thresholds={"boosting": 0.4},
        resamples=50,
    )
    policy = {"elevated": {"enter": 0.2, "recall": 0.81, "precision": 0.3, "survivors_alerted": 0.32}}
    reproduce = evaluate.reproduction("riskstream model train small")
    return {"method": "2-fold cross-validation", "policy": policy, "reproduce": reproduce} | made


def pictures() -> tuple[ModelConfig, dict[str, Any]]:
    rng = np.random.default_rng(6)
    truth = rng.integers(0, 2, 80)
    risk = np.clip(0.4 * truth + rng.uniform(0, 0.6, 80), 0, 1)
    config = ModelConfig(
        name="pictures",
        kind="image",
        version=1,
        outcome="a finding",
        input=(Tensor("image", (1, 28, 28)),),
        output=(Tensor("probability", (2,)),),
        digest="1" * 64,
        policy=POLICY,
        image=ImageInput(28, 28),
        classes=("normal", "finding"),
        findings=("finding",),
    )
    found = {
        "method": "the validation split",
        "threshold": 0.5,
        "model": {"members": 3, "parameters": 1200},
        "data": {
            "source": "Made-up pictures",
            "images": 80,
            "classes": {"normal": 39, "finding": 41},
            "dropped": 1,
            "dropped_because": "pictures that also stand in validation",
            "validation": {"images": 40},
        },
        "judged": judge.judged(truth, risk, 0.5, resamples=50),
        "validation": judge.judged(truth[:40], risk[:40], 0.5, curves=False, resamples=50),
        "activation": {"rank_correlation": 0.4},
        "tried": [
            {"recipe": "without dropout", "part": 0}
            | {who: judge.judged(truth, risk, 0.5, curves=False, resamples=50) for who in ("this", "served")}
        ],
        "confusion": {"normal": {"normal": 30, "finding": 9}, "finding": {"normal": 8, "finding": 33}},
        "subgroups": [],
    }
    return config, found


def facts() -> Facts:
    return shipped.vitals("2 networks of 8 units", ["A wider network: no better"])


def written(folder: Path, config: ModelConfig, evaluation: dict[str, Any]) -> tuple[ModelCard, str]:
    known = image_facts.pictures(config, evaluation) if config.kind == "image" else facts()
    card.write(folder, config, evaluation, known)
    content = (folder / MODEL_CARD).read_bytes()
    schema = json.loads((json_schema.DIRECTORY / "model-card.schema.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(json.loads(content))
    return msgspec.json.decode(content, type=ModelCard), (folder / CARD).read_text()


def test_the_rule_has_thirty_one_attributes_and_nine_variables() -> None:
    numbers = [number for names in ATTRIBUTES.values() for number in names]
    sizes = {"1": 4, "2": 4, "3": 2, "4": 4, "5": 2, "6": 4, "7": 5, "8": 4, "9": 2}
    roman = ("i", "ii", "iii", "iv", "v")
    assert numbers == [f"({group})({roman[i]})" for group, size in sizes.items() for i in range(size)]
    assert len(VARIABLES) == 9


def test_a_series_model_gives_every_attribute(tmp_path: Path, evaluation: dict[str, Any]) -> None:
    made, text = written(tmp_path, config_of("age", "heart_rate", "lactate"), evaluation)
    named = [
        (number, category, name) for category, names in ATTRIBUTES.items() for number, name in names.items()
    ]
    assert [(a.number, a.category, a.name) for a in made.source_attributes] == named
    absent = {a.number for a in made.source_attributes if not a.available}
    assert absent == {
        *("(1)(ii)", "(6)(i)", "(6)(ii)", "(6)(iii)", "(6)(iv)", "(7)(iii)", "(7)(iv)", "(7)(v)"),
        *("(8)(i)", "(8)(ii)", "(8)(iii)", "(8)(iv)"),
    }
    assert made.warning == WARNING
    assert WARNING in text
    assert (made.model, made.version, made.digest) == ("small", 3, "0" * 64)


def test_figures_are_those_of_the_evaluation(tmp_path: Path, evaluation: dict[str, Any]) -> None:
    made, text = written(tmp_path, config_of("age"), evaluation)
    for figure in made.performance:
        judged = evaluation["hours"][figure.at.removesuffix(" h")]
        assert figure.value == judged[figure.figure]
        assert [figure.low, figure.high] == judged["intervals"][figure.figure]
    assert {figure.at for figure in made.performance} == {"6 h", "12 h", "24 h", "48 h"}
    auroc = evaluation["hours"]["48"]
    shown = f"{auroc['auroc']:.3f} ({auroc['intervals']['auroc'][0]:.3f} to"
    validity = next(a for a in made.source_attributes if a.number == "(7)(i)")
    assert shown in validity.text
    assert shown in text
    assert [(g.by, g.group, g.n, g.positives) for g in made.fairness] == [
        (g["by"], g["group"], g["n"], g["positives"]) for g in evaluation["subgroups"]
    ]
    for sentence in evaluation["verdict"]:
        assert sentence in text
    assert "| elevated | 0.2 | 60 min | 81% | 30% | 32% |" in text
    assert "| high | 0.5 | 0 min |  |  |  |" in text
    assert "A wider network: no better" in text
    assert "Made by `riskstream model train small` with python 3." in text
    assert "gradient-boosted trees" in text


def test_forecasts_are_told(tmp_path: Path, evaluation: dict[str, Any]) -> None:
    config = msgspec.structs.replace(config_of("age"), forecast=Forecast(("heart_rate", "temperature")))
    _, text = written(tmp_path, config, evaluation)
    assert "forecasts 1 h ahead, without alerts: heart rate, temperature." in text


@pytest.mark.parametrize(
    ("features", "used"),
    [
        (("age", "sex", "gcs", "heart_rate"), {"(A)(10)", "(A)(11)", "(A)(13)"}),
        (("heart_rate",), set()),
    ],
)
def test_the_use_of_protected_variables_follows_the_config(
    evaluation: dict[str, Any], features: tuple[str, ...], used: set[str]
) -> None:
    made = card.model_card(config_of(*features), evaluation, facts())
    assert {use.number for use in made.variables if use.used} == used
    (text,) = [a.text for a in made.source_attributes if a.number == "(4)(ii)"]
    assert all(f"{variable}: " in text for variable in VARIABLES.values())
    assert text.endswith(", ".join(features))


def test_an_image_model_has_its_own_tables(tmp_path: Path) -> None:
    config, evaluation = pictures()
    made, text = written(tmp_path, config, evaluation)
    assert {figure.at for figure in made.performance} == {
        "threshold 0.5",
        "threshold 0.5, validation, the served model",
    }
    assert f"| {evaluation['validation']['auroc']:.3f} (" in text.split("validation, the served model", 1)[1]
    assert "without dropout: AUROC " in text
    assert made.fairness == ()
    (fairness,) = [a for a in made.source_attributes if a.number == "(7)(ii)"]
    assert not fairness.available
    assert "| finding | 8 | 33 |" in text
    assert "28 x 28 pixels" in text
    assert not any(use.used for use in made.variables)


@pytest.mark.parametrize("kind", ["series", "pictures"])
def test_the_text_is_whole_markdown(tmp_path: Path, evaluation: dict[str, Any], kind: str) -> None:
    config, found = (config_of("age"), evaluation) if kind == "series" else pictures()
    _, text = written(tmp_path, config, found)
    assert not re.search(r"\{|\}|None(?!:)|\bnan\b|\n\n\n", text)
    tables = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert tables
    for table in tables:
        assert len({line.count("|") for line in table.splitlines()}) == 1


@pytest.mark.parametrize(
    "made", [shipped.vitals("f", ()), shipped.bedside("f", ()), image_facts.pictures(*pictures())]
)
def test_shipped_facts_are_sentences(made: Facts) -> None:
    for name, value in msgspec.structs.asdict(made).items():
        if isinstance(value, str) and name not in {"title", "form"}:
            assert value.strip() == value
            assert value[0].isupper() or value[0] == "`"
