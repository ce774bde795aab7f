"""Training: the parts that decide whether it is honest, and that its network is the one served."""

# ruff: noqa: E402
import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch", reason="training needs the extra `train`")

from engines import physionet2012, repository
from engines.errors import DatasetError
from engines.steps import run_steps
from engines.train import calibrate, data, export, vitals
from engines.train.fit import normalisation
from engines.train.network import Inputs, Member, Step
from schemas.features import CHANNEL, FEATURES, STATIC
from schemas.model_config import Policy, policy_complaints
from schemas.window import Rows, carry, open_row, rows
from tests.engines.test_evaluate import stay_text


def step_of(members: int = 2, hidden: int = 16, seed: int = 0) -> Step:
    """A network with random weights and uneven normalisation."""
    torch.manual_seed(seed)
    width = len(FEATURES)
    fill = torch.tensor([feature.fill for feature in FEATURES])
    logged = (torch.arange(width) % 2).float()
    mean = logged * torch.log1p(fill) + (1 - logged) * fill
    made = [Member(Inputs(mean, fill / 5 + 0.1, logged), hidden) for _ in range(members)]
    with torch.no_grad():
        for member in made:
            member.inputs.decay.uniform_(-6, 1)
    return Step(made, 1.3, -0.2)


def made_stays(number: int, seed: int = 3) -> list[physionet2012.Accepted]:
    rng = np.random.default_rng(seed)
    stays = [physionet2012._stay(str(i), stay_text(i, rng)) for i in range(number)]
    return [physionet2012.clean(stay) for stay in stays]


@pytest.fixture(scope="module")
def exported() -> bytes:
    return export.to_onnx(step_of())


def test_export_equals_the_training_network(exported: bytes, tmp_path: Path) -> None:
    step, stays = step_of(), vitals.synthetic_stays(1, 5)
    config = vitals._config(step, hashlib.sha256(exported).hexdigest(), _policy())
    engine = repository.open_engine(config, exported)
    np.testing.assert_allclose(run_steps(engine, stays), export.network_risks(step, stays), atol=1e-5, rtol=0)
    (tmp_path / "golden.npz").write_bytes(export.golden(step, stays))
    repository.verify(engine, repository.read_golden(tmp_path / "golden.npz"))


def test_export_depends_on_the_weights_alone(exported: bytes) -> None:
    assert export.to_onnx(step_of()) == exported


def test_the_graph_is_plain_and_tells_no_paths(exported: bytes) -> None:
    operators = {node.op_type for node in onnx.load_from_string(exported).graph.node}
    assert operators <= {
        "Add", "Clip", "Concat", "Div", "Exp", "Gather", "Gemm", "Log", "MatMul", "Mul", "Relu", "Sigmoid",
        "Slice", "Squeeze", "Sub", "Tanh",
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
    parts = vitals.stratified(died, 5, seed=1)
    assert [int(died[parts == part].sum()) for part in range(5)] == [4] * 5
    assert np.bincount(parts).tolist() == [20] * 5
    assert parts.tolist() == vitals.stratified(died, 5, seed=1).tolist()


def test_normalisation_looks_at_its_own_stays_only() -> None:
    aligned = data.aligned_rows(made_stays(6))
    chosen = np.array([0, 2, 4])
    first = normalisation(aligned, chosen)
    aligned.values[[1, 3, 5]] += 50
    for one, other in zip(first, normalisation(aligned, chosen), strict=True):
        assert torch.equal(one, other)


def test_platt_recovers_a_known_calibration() -> None:
    rng = np.random.default_rng(0)
    logits = np.repeat(rng.normal(-1, 1.5, (40_000, 1)), 8, axis=1)
    died = (rng.random(40_000) < 1 / (1 + np.exp(-(1.7 * logits[:, 0] - 0.4)))).astype(float)
    found = calibrate.platt(logits, died)
    assert found.slope == pytest.approx(1.7, abs=0.05)
    assert found.intercept == pytest.approx(-0.4, abs=0.05)


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
    vitals.train(tmp_path, tmp_path / "models", lambda *step: told.append(step), vitals.QUICK)
    engine = repository.load(tmp_path / "models", "vitals")
    assert engine.config.state[0].dims == (32,)
    assert ("training", 12, 12) in told
    figures = json.loads((tmp_path / "models/vitals/evaluation.json").read_text())
    assert figures["hours"]["48"]["deaths"] == 20


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


def test_synthetic_stays_are_plausible() -> None:
    stays = vitals.synthetic_stays(4)
    series = [channel for channel in range(len(FEATURES)) if channel not in STATIC]
    for channel in series:
        values = stays.values[..., channel]
        assert values.min() >= np.float32(FEATURES[channel].low)
        assert values.max() <= np.float32(FEATURES[channel].high)
    assert stays.elapsed[..., CHANNEL["height"]].min() == 48


def _policy() -> Policy:
    rng = np.random.default_rng(0)
    died = (rng.random(400) < 0.2).astype(float)
    risks = np.clip(rng.beta(2, 8, (400, 48)) + 0.3 * died[:, None], 0, 1)
    policy, _ = calibrate.choose_policy(risks, died)
    assert policy_complaints(policy) == []
    return policy
