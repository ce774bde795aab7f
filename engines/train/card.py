"""The model card, written from the figures."""

from typing import Any

from schemas.model_config import ModelConfig

TEMPLATE = """\
# {name}, version {version}

**Not for clinical use without local validation.** No hospital has tried this model.

| | |
|---|---|
| predicts | {outcome}: calibrated probability, at any hour of an intensive-care stay |
| reads | the last 48 hourly bins of {features} features, named in `config.json`; any may be missing |
| form | {members} GRU networks of {hidden} units, averaged in one recurrent step |
| inside the graph | normalisation, input decay, masks, calibration |
| digest | `{digest}` |

## Intended use
Early warning on adult intensive-care units, beside the staff's own judgement, after validation, calibration
and choice of thresholds on the hospital's own patients. Research and demonstration of the worker. Not for
children, not outside intensive care, not for triage, rationing or withdrawal of care.

## Data
Set A of the PhysioNet/Computing in Cardiology Challenge 2012 (Silva I, Moody G, Scott DJ, Celi LA, Mark RG,
"Predicting in-hospital mortality of ICU patients: the PhysioNet/Computing in Cardiology Challenge 2012",
Computing in Cardiology 2012;39:245-248; Goldberger A et al., PhysioNet, Circulation 2000;101:e215-e220),
made available under the Open Data Commons Attribution License v1.0. {stays} stays of adults, the first 48
hours in four kinds of intensive-care unit of one hospital in Boston, 2001 to 2008; {deaths} died in
hospital. Values outside the plausible range of the feature table are left out, as the worker does. The
data's magnesium is taken as mg/dL, which its values show it to be. Golden data are synthetic.

## How it was judged
{method}. Stopping, normalisation and calibration of a fold's figures used other folds only. The recipe (batch
size, dropout, learning rate) was picked by about ten short trials on other splits of these same stays, so the
figures are a little optimistic; stays that nobody trained on are the better judge.

| hour | AUROC | AUPRC | event 1 | Brier | ECE |
|---|---|---|---|---|---|
{figures}

Event 1 is the smaller of sensitivity and positive predictivity at the fixed threshold {threshold}, chosen
on these same risks at 48 h: slightly optimistic. The served ensemble is trained on all folds. Definitions
are in `evaluation.json`.

## Alert policy
Chosen on the risks out of fold at the end of each hour, so the worker, which scores each record, differs a
little. The first level is the lowest percent that ever alerts on at most a third of the survivors, held for
an hour; the second is the lowest percent at which half of those alerted on die.

| level | enters at | deaths alerted on | died, of those alerted on | survivors alerted on |
|---|---|---|---|---|
{levels}

## Limits
- One hospital, two decades ago: practice, devices and case mix have changed. Expect calibration to be off
  elsewhere.
- The outcome is death in hospital at any time, not deterioration in the next hours; risk follows the
  patient's whole state.
- What is measured and how often is itself an input: other habits of ordering tests shift the risk.
- Height, troponin and cholesterol are rare; type of unit is a local code of the data set.
- Fairness: sex and age are inputs; ethnicity was not available, so nothing can be said of it.
"""


def text(config: ModelConfig, evaluation: dict[str, Any], members: int, hidden: int) -> str:
    """The card in Markdown."""
    columns = ("auroc", "auprc", "event1", "brier", "ece")
    figures = [
        f"| {hour} | " + " | ".join(f"{found[column]:.3f}" for column in columns) + " |"
        for hour, found in evaluation["hours"].items()
    ]
    shares = ("recall", "precision", "survivors_alerted")
    levels = [
        f"| {severity} | {found['enter']:g} | " + " | ".join(f"{found[share]:.0%}" for share in shares) + " |"
        for severity, found in evaluation["policy"].items()
    ]
    return TEMPLATE.format(
        name=config.name,
        version=config.version,
        outcome=config.outcome,
        features=len(config.features),
        members=members,
        hidden=hidden,
        digest=config.digest,
        stays=f"{evaluation['data']['stays']:,}",
        deaths=evaluation["data"]["deaths"],
        method=evaluation["method"],
        figures="\n".join(figures),
        threshold=evaluation["event1_threshold"],
        levels="\n".join(levels),
    )
