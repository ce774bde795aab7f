"""Training: the parts that decide whether it is honest, and that its network is the one served."""

# ruff: noqa: E402
import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch", reason="training needs the extra `train`")

from engines import drift_reference, folds, physionet2012, repository
from engines.errors import DatasetError, RepositoryError
from engines.steps import run_stays, run_steps
from engines.train import calibrate, data, ensemble, export, fit, vitals
from engines.train.network import Calibration, Step, at, summaries, summarise
from schemas.features import CHANNEL, FEATURES, STATIC
from schemas.model_config import ModelConfig, Policy, policy_complaints
from schemas.window import Rows, carry, open_row, rows
from tests.engines.test_evaluate import stay_text

PLAN = vitals.QUICK


def step_of(name: str = "vitals", seed: int = 0) -> Step:
    """A network of both kinds of member with random weights and uneven normalisation."""
    stays = data.chosen(vitals.synthetic_stays(9, 6), vitals.columns_of(name))
    form = fit.shape(stays, np.arange(6), vitals.MODELS[name], vitals.FORECASTS)
    form.inputs.logged.copy_((torch.arange(len(form.inputs.logged)) % 2).float())
    torch.manual_seed(seed)
    made = [fit.build(recipe, form) for recipe in PLAN.recipes * 2]
    with torch.no_grad():
        for member in made:
            member.decayed.decay.uniform_(-6, 1)
    step = ensemble.Ensemble(form, made).step(Calibration(1.3, -0.2))
    step.eval()
    return step


def made_stays(number: int, seed: int = 3) -> list[physionet2012.Accepted]:
    rng = np.random.default_rng(seed)
    stays = [physionet2012._stay(str(i), stay_text(i, rng)) for i in range(number)]
    return [physionet2012.clean(stay) for stay in stays]


@pytest.fixture(scope="module")
def exported() -> bytes:
    return export.to_onnx(step_of())


@pytest.mark.parametrize("name", list(vitals.MODELS))
def test_export_equals_the_training_network(name: str, tmp_path: Path) -> None:
    """Risk, spread and forecast, over whole stays, streamed row by row."""
    step, stays = step_of(name), vitals.synthetic_stays(1, 5)
    graph = export.to_onnx(step)
    engine = repository.open_engine(_config(name, step, graph), graph)
    came = run_stays(engine, stays)._asdict()
    wanted = export.network_outputs(step, data.chosen(stays, vitals.columns_of(name)))
    for tensor, array in wanted._asdict().items():
        relative = 1e-6 if tensor == "forecast" else 0  # forecasts are around 100: the last bit is 8e-6
        np.testing.assert_allclose(came[tensor], array, atol=1e-5, rtol=relative)
    assert float(wanted.spread.min()) > 0
    (tmp_path / "golden.npz").write_bytes(export.golden(step, stays, vitals.columns_of(name)))
    repository.verify(engine, repository.read_golden(tmp_path / "golden.npz"))


def test_bedside_reads_its_own_features_alone(exported: bytes) -> None:
    laboratory = set(vitals.MODELS["vitals"]) - set(vitals.MODELS["bedside"])
    assert {"lactate", "creatinine", "platelets", "arterial_ph"} <= laboratory
    assert set(vitals.FORECASTS) <= set(vitals.MODELS["bedside"])
    step = step_of("bedside")
    graph = export.to_onnx(step)
    engine = repository.open_engine(_config("bedside", step, graph), graph)
    stays = vitals.synthetic_stays(1, 3)
    before = run_steps(engine, stays)
    stays.values[..., [CHANNEL[name] for name in laboratory]] *= 3
    np.testing.assert_array_equal(run_steps(engine, stays), before)
    stays.values[..., CHANNEL["heart_rate"]] *= 3
    assert not np.array_equal(run_steps(engine, stays), before)


def test_summaries_step_by_step_are_those_of_the_whole_stay() -> None:
    form = fit.shape(vitals.synthetic_stays(9, 6), np.arange(6), vitals.MODELS["vitals"], ())
    stays = form.inputs(*map(torch.from_numpy, vitals.synthetic_stays(2, 3)))
    whole = summaries(stays, form.series)
    state = torch.zeros_like(whole[:, 0])
    for hour in range(48):
        state = summarise(at(stays, np.array([hour])), state[:, None], form.series)[:, 0]
        torch.testing.assert_close(state, whole[:, hour], atol=1e-5, rtol=1e-6)
    # By hand, for one series of one stay.
    place = form.series.tolist().index(CHANNEL["heart_rate"])
    values = stays.z[0, :, CHANNEL["heart_rate"]][stays.fresh[0, :, CHANNEL["heart_rate"]] == 1]
    found = state[0].reshape(5, -1)[:, place]
    expected = torch.stack(
        [values.max() + 7, 7 - values.min(), torch.tensor(float(len(values))), values.sum(), values[0]]
    )
    torch.testing.assert_close(found, expected)


def test_an_opened_hour_is_learnt_from_as_it_is_served() -> None:
    """`learn` reads hours in progress as `step` does after the complete hours before them."""
    step, stays = step_of(), vitals.synthetic_stays(3, 2)
    closed = step.inputs(*map(torch.from_numpy, stays))
    opened = step.inputs(*map(torch.from_numpy, vitals.synthetic_stays(4, 2)))
    hours = np.array([0, 7, 30])
    with torch.no_grad():
        learnt = step.members[0].learn(closed, opened, hours)[1]
        _, states = step.members[0].over(closed)
        before = torch.zeros_like(states[:, 0])
        for place, hour in enumerate(hours):
            before = states[:, hour - 1] if hour else before
            read, _ = step.members[0].step(at(opened, np.array([hour])), before[:, None])
            torch.testing.assert_close(learnt.logit[:, place], read.logit[:, 0])
        dense = step.members[1].learn(closed, opened, hours)[1]
        after = summaries(closed, step.series)[:, 29]
        row = at(opened, np.array([30]))
        read = step.members[1].read(row, summarise(row, after[:, None], step.series))
        torch.testing.assert_close(dense.logit[:, 2], read.logit[:, 0])


def test_export_depends_on_the_weights_alone(exported: bytes) -> None:
    assert export.to_onnx(step_of()) == exported


def test_the_graph_is_plain_and_tells_no_paths(exported: bytes) -> None:
    operators = {node.op_type for node in onnx.load_from_string(exported).graph.node}
    assert operators <= {
        "Add", "Clip", "Concat", "Div", "Exp", "Gather", "Gemm", "Log", "MatMul", "Max", "Min", "Mul",
        "ReduceMean", "Relu", "Sigmoid", "Slice", "Split", "Sqrt", "Squeeze", "Sub", "Tanh",
    }  # fmt: skip
    assert b".py" not in exported


def test_open_rows_are_those_of_serving() -> None:
    """Each open row is what the worker's `open_row` writes after the complete hours before it."""
    accepted = made_stays(1)[0]
    offset, cut = 17, 40
    full = rows(*physionet2012.bins(accepted, offset, data.HOURS))
    opened = data._opened(accepted, full, offset, cut)
    early = (accepted.minute + offset) % 60 < cut
    part = physionet2012.Accepted(
        accepted.minute[early], accepted.channel[early], accepted.value[early], accepted.statics, {}
    )
    values, counts, statics = physionet2012.bins(part, offset, data.HOURS)
    for hour in (0, 1, 20, 48):
        expected = Rows(*(np.zeros((1, len(FEATURES)), np.float32) for _ in range(3)))
        carried = carry(Rows(*(array[:hour] for array in full)))
        open_row(carried, values[hour], counts[hour], statics, expected, 0)
        for came, want in zip(opened, expected, strict=True):
            np.testing.assert_array_equal(came[hour], want[0])


def test_parts_are_stratified_and_seeded() -> None:
    died = np.array([1.0] * 20 + [0.0] * 80)
    parts = ensemble.stratified(died, 5, seed=1)
    assert [int(died[parts == part].sum()) for part in range(5)] == [4] * 5
    assert np.bincount(parts).tolist() == [20] * 5
    assert parts.tolist() == ensemble.stratified(died, 5, seed=1).tolist()


def test_normalisation_looks_at_its_own_stays_only() -> None:
    aligned = data.aligned_rows(made_stays(6))
    names, seen = vitals.MODELS["vitals"], np.array([0, 2, 4])
    first = fit.shape(aligned, seen, names, vitals.FORECASTS)
    aligned.values[[1, 3, 5]] += 50
    second = fit.shape(aligned, seen, names, vitals.FORECASTS)
    for one, other in zip(first.inputs.buffers(), second.inputs.buffers(), strict=True):
        assert torch.equal(one, other)
    for one, other in zip(first.target, second.target, strict=True):
        assert torch.equal(one, other)


def test_members_do_not_depend_on_the_number_of_processes() -> None:
    """Two processes train what one trains, to the last bit."""
    accepted, rng = made_stays(24), np.random.default_rng(0)
    died = (np.arange(24) % 3 == 0).astype(np.float32)
    aligned = data.aligned_rows(accepted)
    material = data.Material(died, aligned, [data.training_rows(accepted, rng)])
    everyone = np.arange(24)
    form = fit.shape(aligned, everyone, vitals.MODELS["vitals"], vitals.FORECASTS)
    work = ensemble.jobs(PLAN.recipes, form, died, everyone, 2, seed=1)
    told: list[int] = []
    for one, two in zip(
        ensemble.train_all(material, work, 1, told.append),
        ensemble.train_all(material, work, 2, told.append),
        strict=True,
    ):
        for name, tensor in one.state_dict().items():
            assert torch.equal(tensor, two.state_dict()[name])
    assert max(told) == told[-1] == sum(recipe.epochs for recipe in PLAN.recipes)


def test_each_member_is_stopped_by_another_part() -> None:
    died = (np.arange(100) % 5 == 0).astype(np.float32)
    stays = np.arange(10, 100)
    form = fit.shape(vitals.synthetic_stays(9, 2), np.arange(2), vitals.MODELS["vitals"], ())
    work = ensemble.jobs(vitals.FULL.recipes, form, died, stays, 10, seed=1)
    for job in work:
        assert sorted([*job.split.learn, *job.split.stop]) == stays.tolist()
    stopped = np.concatenate([job.split.stop for job in work])
    assert len(set(stopped.tolist())) == len(stopped)


def test_platt_recovers_a_known_calibration() -> None:
    rng = np.random.default_rng(0)
    logits = np.repeat(rng.normal(-1, 1.5, (40_000, 1)), 8, axis=1)
    died = (rng.random(40_000) < 1 / (1 + np.exp(-(1.7 * logits[:, 0] - 0.4)))).astype(float)
    found = calibrate.platt(logits, died)
    assert found.slope == pytest.approx(1.7, abs=0.05)
    assert found.intercept == pytest.approx(-0.4, abs=0.05)


def test_the_first_policy_keeps_to_its_rule() -> None:
    rng = np.random.default_rng(2)
    died = (rng.random(600) < 0.2).astype(float)
    risks = np.clip(rng.beta(2, 8, (600, 1)) + rng.normal(0, 0.03, (600, 48)) + 0.2 * died[:, None], 0, 1)
    policy, (elevated, high) = calibrate.choose_policy(risks, died)
    first, second = policy.levels
    assert (first.enter, second.enter) == (elevated.enter, high.enter)
    assert (first.persistence_s, second.persistence_s) == (5 * 3600.0, 1800.0)
    assert elevated == calibrate.operating(risks, died, first.enter, hours=6)
    assert elevated.survivors_alerted <= calibrate.SURVIVORS_ALERTED
    lower = calibrate.operating(risks, died, first.enter - 0.005, hours=6)
    assert lower.survivors_alerted > calibrate.SURVIVORS_ALERTED
    assert high.precision >= calibrate.HIGH_PRECISION


def test_ever_alerted_needs_consecutive_hours() -> None:
    risks = np.array([[0.1, 0.6, 0.1, 0.6], [0.1, 0.6, 0.6, 0.1], [0.1, 0.1, 0.1, 0.1]])
    assert calibrate.ever_alerted(risks, 0.5, 1).tolist() == [True, True, False]
    assert calibrate.ever_alerted(risks, 0.5, 2).tolist() == [False, True, False]


def test_the_whole_procedure_on_made_up_stays(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    lines = ["RecordID,In-hospital_death"]
    for record in range(60):
        (tmp_path / f"{record}.txt").write_text(stay_text(record, rng))
        lines.append(f"{record},{int(record % 3 == 0)}")
    (tmp_path / "Outcomes-z.txt").write_text("\n".join(lines) + "\n")
    told: list[tuple[str, int, int]] = []
    kept = tmp_path / "folds"
    models = tmp_path / "models"
    vitals.train(tmp_path, models, lambda *step: told.append(step), vitals.QUICK, folds=kept)
    engine = repository.load(tmp_path / "models", "vitals")
    assert engine.config.state[0].dims == (5 * 37 + 16,)
    assert engine.config.forecast is not None
    assert ("training", 12, 12) in told
    figures = json.loads((tmp_path / "models/vitals/evaluation.json").read_text())
    assert figures["hours"]["48"]["positives"] == 20
    assert set(figures["forecast"]) == set(vitals.FORECASTS)
    assert {"boosting", "logistic", "news2"} <= set(figures["baselines"])
    files = {path.name for path in (tmp_path / "models/vitals").iterdir()}
    assert files == {
        "1", "MODEL_CARD.md", "baselines.npz", "config.json", "evaluation.html", "evaluation.json",
        "model_card.json", "reference.json",
    }  # fmt: skip
    reference = drift_reference.read(tmp_path / "models", engine.config)
    assert (reference.stays, reference.risks) == (len(lines) - 1, "out of fold")
    assert reference.data_digest == figures["data"]["digest"]
    known = folds.read(kept)
    assert (known.model, known.data) == ("vitals", figures["data"]["digest"])
    assert known.names() == ["vitals-fold-0", "vitals-fold-1"]
    assert [config.name for config in repository.list_models(kept)] == known.names()
    again = drift_reference.of_stays(engine, tmp_path, lambda *_: None, kept)
    assert again.risks == "out of fold"
    assert again.features == reference.features
    served = drift_reference.of_stays(engine, tmp_path, lambda *_: None)
    assert served.risks == "served"
    assert served.risk.edges != again.risk.edges


@pytest.mark.parametrize(
    ("outcomes", "message"),
    [
        ({}, "names every stay"),
        ({0: 1, 1: 0, 2: 0, 3: 0}, "needs 4 deaths and 4 survivors at the least, came 1 and 3"),
    ],
)
def test_data_that_cannot_be_learnt_from(tmp_path: Path, outcomes: dict[int, int], message: str) -> None:
    rng = np.random.default_rng(5)
    for record in range(4):
        (tmp_path / f"{record}.txt").write_text(stay_text(record, rng))
    lines = ["RecordID,In-hospital_death", *(f"{record},{died}" for record, died in outcomes.items())]
    (tmp_path / "Outcomes-z.txt").write_text("\n".join(lines) + "\n")
    with pytest.raises(DatasetError, match=message):
        vitals.train(tmp_path, tmp_path / "models", lambda *_: None, vitals.QUICK)


@pytest.mark.parametrize("replace", [False, True])
def test_what_the_repository_refuses_is_told_first(replace: bool, tmp_path: Path) -> None:
    """Before anything is read, or trained for hours."""
    for version in (1, 2):
        (tmp_path / f"vitals/{version}").mkdir(parents=True)
    message = r"holds the versions \[1, 2\]" if replace else "holds no config.json"
    with pytest.raises(RepositoryError, match=message):
        vitals.train(tmp_path / "no data", tmp_path, lambda *_: None, replace=replace)


def test_synthetic_stays_are_plausible() -> None:
    stays = vitals.synthetic_stays(4)
    series = [channel for channel in range(len(FEATURES)) if channel not in STATIC]
    for channel in series:
        values = stays.values[..., channel]
        assert values.min() >= np.float32(FEATURES[channel].low)
        assert values.max() <= np.float32(FEATURES[channel].high)
    assert stays.elapsed[..., CHANNEL["height"]].min() == 48


def _config(name: str, step: Step, graph: bytes) -> ModelConfig:
    return vitals._config(name, name, step, hashlib.sha256(graph).hexdigest(), _policy())


def _policy() -> Policy:
    rng = np.random.default_rng(0)
    died = (rng.random(400) < 0.2).astype(float)
    risks = np.clip(rng.beta(2, 8, (400, 48)) + 0.3 * died[:, None], 0, 1)
    policy, _ = calibrate.choose_policy(risks, died)
    assert policy_complaints(policy) == []
    return policy
