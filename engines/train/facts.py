"""What the cards of the models of stays say beside figures; see `engines.card_facts`."""

from collections.abc import Sequence

from engines.card_facts import Facts

CHALLENGE = (
    "Set A of the PhysioNet/Computing in Cardiology Challenge 2012: Silva I, Moody G, Scott DJ, Celi LA, "
    "Mark RG. Predicting in-hospital mortality of ICU patients: the PhysioNet/Computing in Cardiology "
    "Challenge 2012. Computing in Cardiology 2012;39:245-248",
    "Goldberger A, Amaral L, Glass L, et al. PhysioBank, PhysioToolkit, and PhysioNet: components of a new "
    "research resource for complex physiologic signals. Circulation 2000;101(23):e215-e220",
    "The data are made available under the Open Data Commons Attribution License v1.0",
)


def vitals(form: str, tried: Sequence[str]) -> Facts:
    """Of the model that reads vital signs and laboratory values.

    Args:
        form: what the graph is, in a line.
        tried: what was tried and is not shipped, and why; a sentence each.
    """
    return _facts(
        "death in hospital, from vital signs and laboratory values",
        form,
        tried,
        limits=(
            "What is measured, and how often, is itself an input: other habits of ordering tests shift the "
            "risk",
            "Height, troponin and cholesterol are rare in the data; the type of unit is a local code of "
            "theirs",
        ),
    )


def bedside(form: str, tried: Sequence[str]) -> Facts:
    """Of the model that reads what is known at the bedside alone; arguments as in `vitals`."""
    return _facts(
        "death in hospital, from what is known at the bedside",
        form,
        tried,
        limits=(
            "It knows no laboratory value: where those are at hand, the model `vitals` knows more",
            "What is measured, and how often, is itself an input: an invasive line or a frequent GCS says "
            "that somebody was worried; other habits shift the risk",
        ),
    )


def _facts(title: str, form: str, tried: Sequence[str], limits: tuple[str, ...]) -> Facts:
    return Facts(
        title=title,
        form=form,
        inside="Normalisation, masks for what is missing, calibration.",
        output_value="The probability that the patient dies in hospital, from 0 to 1, calibrated, at any "
        "hour of an intensive-care stay, with the spread of its members' opinions.",
        output_type="A prediction.",
        intended_use="Early warning beside the staff's own judgement, after validation, calibration and "
        "choice of thresholds on the hospital's own patients; research, and demonstration of the worker.",
        intended_population="Adults in intensive care, within their first days there.",
        intended_users="Nurses and physicians of intensive-care units and outreach teams; the clinical data "
        "scientists and engineers who validate and run it for them.",
        decision_role="It informs: it draws attention to a patient, and replaces neither assessment nor "
        "decision.",
        cautioned=(
            "Children and patients outside intensive care",
            "Triage, rationing, prognosis told to families, or withdrawal of care",
            "Deciding that a patient needs no attention because the risk is low",
            "Judging units or staff by the risks of their patients",
        ),
        limits=(
            "One hospital, 2001 to 2008: practice, devices and case mix have changed since. Expect "
            "calibration to be off elsewhere",
            "The outcome is death in hospital at any time, not deterioration in the next hours: risk follows "
            "the patient's whole state, and treatment that works lowers it late",
            "Learnt from the first 48 hours of stays of at least 48 hours: nothing was learnt from those who "
            "died or left sooner",
            "Decisions to limit treatment are not in the data, though they precede many deaths",
            *limits,
        ),
        criteria="Stays of adults in coronary care, cardiac surgery recovery, medical "
        "and surgical intensive-care units of one hospital in Boston, 2001 to 2008, chosen by the makers of "
        "the Challenge among stays of at least 48 hours; none was left out here. Values outside the "
        "plausible range of the feature table are left out, as the worker does, and magnesium is taken as "
        "mg/dL, which its values show it to be.",
        relevance="The training data are from intensive care, as is the intended setting, but from one "
        "hospital of one country two decades ago.",
        representativeness="Age and sex are known for nearly everyone. Race, ethnicity, language, sexual "
        "orientation, gender identity and social determinants of health are not in the data.",
        fairness="Figures by age, sex and type of unit are computed in each evaluation and printed with "
        "intervals; no choice in training was made by them.",
        bias="Sex and age are inputs, as in the severity scores in use. No group was weighted. What is not "
        "in the data, ethnicity among it, could not be examined: nothing can be said of bias along it.",
        judged=(
            "The recipe (sizes, rates, dropout) was chosen by trials on these same stays, so the figures are "
            "a little optimistic; stays that nobody trained on are the better judge.",
            "Thresholds and alert policy were chosen on these same risks out of fold.",
        ),
        informed_by=(
            "Cross-validation on set A alone: neither test set of the Challenge was used or looked at",
            "When and how often something is measured tells as much as its value: hence elapsed time and "
            "counts beside values",
            "Every hour is learnt from, at random alignments to the clock and with hours partly filled, "
            "because the worker scores at every record",
        ),
        tried=tuple(tried),
        attribution=CHALLENGE,
        reproduced="`riskstream model train NAME --data physionet2012:DIR` makes every file of the folder "
        "again. On another kind of processor, or with another version of PyTorch, the last bits of the "
        "weights differ, and with them the digest and the last digits of the figures.",
    )
