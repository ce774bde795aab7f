"""A model folder's `model_card.json`: what a hospital must know of a model, for machines.

The source attributes are those that 45 CFR 170.315(b)(11)(iv)(B) (ONC, Health Data, Technology, and
Interoperability: HTI-1 final rule, 89 FR 1192) asks of a predictive decision support intervention, by number
and in the words of the rule. The card gives the attributes; it claims no certification.
"""

from typing import Annotated, Literal

from msgspec import Meta, Struct

REGULATION: Literal["45 CFR 170.315(b)(11)(iv)(B)"] = "45 CFR 170.315(b)(11)(iv)(B)"

ATTRIBUTES: dict[str, dict[str, str]] = {
    "Details and output of the intervention": {
        "(1)(i)": "Name and contact information for the intervention developer",
        "(1)(ii)": "Funding source of the technical implementation for the intervention(s) development",
        "(1)(iii)": "Description of value that the intervention produces as an output",
        "(1)(iv)": "Whether the intervention output is a prediction, classification, recommendation, "
        "evaluation, analysis, or other type of output",
    },
    "Purpose of the intervention": {
        "(2)(i)": "Intended use of the intervention",
        "(2)(ii)": "Intended patient population(s) for the intervention's use",
        "(2)(iii)": "Intended user(s)",
        "(2)(iv)": "Intended decision-making role for which the intervention was designed to be used/for "
        "(e.g., informs, augments, replaces clinical management)",
    },
    "Cautioned out-of-scope use of the intervention": {
        "(3)(i)": "Description of tasks, situations, or populations where a user is cautioned against "
        "applying the intervention",
        "(3)(ii)": "Known risks, inappropriate settings, inappropriate uses, or known limitations",
    },
    "Intervention development details and input features": {
        "(4)(i)": "Exclusion and inclusion criteria that influenced the training data set",
        "(4)(ii)": "Use of variables in paragraph (b)(11)(iv)(A)(5)-(13) as input features",
        "(4)(iii)": "Description of demographic representativeness according to variables in paragraph "
        "(b)(11)(iv)(A)(5)-(13) including, at a minimum, those used as input features in the intervention",
        "(4)(iv)": "Description of relevance of training data to intended deployed setting",
    },
    "Process used to ensure fairness in development of the intervention": {
        "(5)(i)": "Description of the approach the intervention developer has taken to ensure that the "
        "intervention's output is fair",
        "(5)(ii)": "Description of approaches to manage, reduce, or eliminate bias",
    },
    "External validation process": {
        "(6)(i)": "Description of the data source, clinical setting, or environment where an intervention's "
        "validity and fairness has been assessed, other than the source of training and testing data",
        "(6)(ii)": "Party that conducted the external testing",
        "(6)(iii)": "Description of demographic representativeness of external data according to variables "
        "in paragraph (b)(11)(iv)(A)(5)-(13) including, at a minimum, those used as input features in the "
        "intervention",
        "(6)(iv)": "Description of external validation process",
    },
    "Quantitative measures of performance": {
        "(7)(i)": "Validity of intervention in test data derived from the same source as the initial "
        "training data",
        "(7)(ii)": "Fairness of intervention in test data derived from the same source as the initial "
        "training data",
        "(7)(iii)": "Validity of intervention in data external to or from a different source than the "
        "initial training data",
        "(7)(iv)": "Fairness of intervention in data external to or from a different source than the initial "
        "training data",
        "(7)(v)": "References to evaluation of use of the intervention on outcomes, including, bibliographic "
        "citations or hyperlinks to evaluations of how well the intervention reduced morbidity, mortality, "
        "length of stay, or other outcomes",
    },
    "Ongoing maintenance of intervention implementation and use": {
        "(8)(i)": "Description of process and frequency by which the intervention's validity is monitored "
        "over time",
        "(8)(ii)": "Validity of intervention in local data",
        "(8)(iii)": "Description of the process and frequency by which the intervention's fairness is "
        "monitored over time",
        "(8)(iv)": "Fairness of intervention in local data",
    },
    "Update and continued validation or fairness assessment schedule": {
        "(9)(i)": "Description of process and frequency by which the intervention is updated",
        "(9)(ii)": "Description of frequency by which the intervention's performance is corrected when risks "
        "related to validity and fairness are identified",
    },
}
"""Category -> number -> name, in the rule's order; 31 attributes."""

VARIABLES: dict[str, str] = {
    "(A)(5)": "race",
    "(A)(6)": "ethnicity",
    "(A)(7)": "language",
    "(A)(8)": "sexual orientation",
    "(A)(9)": "gender identity",
    "(A)(10)": "sex",
    "(A)(11)": "date of birth",
    "(A)(12)": "social determinants of health data",
    "(A)(13)": "health status assessments data",
}
"""The variables whose use as inputs the rule asks about, by number."""

Words = Annotated[str, Meta(min_length=1)]


class SourceAttribute(Struct, frozen=True):
    """One attribute.

    number: within `regulation`, such as `(7)(ii)`.
    category, name: in the words of the rule.
    available: whether there is anything to report; if not, `text` says what is lacking.
    """

    number: Annotated[str, Meta(pattern=r"^\([1-9]\)\((i|ii|iii|iv|v)\)$")]
    category: Words
    name: Words
    available: bool
    text: Words


class VariableUse(Struct, frozen=True):
    """Whether one variable of 45 CFR 170.315(b)(11)(iv)(A)(5)-(13) is an input feature, and how."""

    number: Words
    variable: Words
    used: bool
    text: Words


class Figure(Struct, frozen=True):
    """One figure with its 95% interval; both ends null where none was computed.

    figure: its name in evaluation.json, such as `auroc`, where `metrics` defines it.
    at: what it was judged at, such as `48 h`.
    """

    figure: Words
    at: Words
    value: float
    low: float | None = None
    high: float | None = None


class Group(Struct, frozen=True):
    """A group of patients: how many, how many with the outcome, and its figures, none if they are too few."""

    by: Words
    group: Words
    n: Annotated[int, Meta(ge=0)]
    positives: Annotated[int, Meta(ge=0)]
    figures: tuple[Figure, ...]


class ModelCard(Struct, frozen=True, kw_only=True):
    """Everything that a model declares about itself.

    performance: figures on the same source as the training data, on cases held out of training.
    fairness: the same by group; empty where the data tell no groups apart.
    informed_by: what the choices made in training rest on. tried: what was tried and is not shipped, and why.
    attribution: sources of the data, as their licences ask.
    """

    schema: Literal["riskstream-model-card/1"] = "riskstream-model-card/1"
    model: Words
    version: Annotated[int, Meta(ge=1)]
    digest: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")]
    kind: Words
    outcome: Words
    warning: Words
    regulation: Literal["45 CFR 170.315(b)(11)(iv)(B)"] = REGULATION
    source_attributes: Annotated[tuple[SourceAttribute, ...], Meta(min_length=31, max_length=31)]
    variables: Annotated[tuple[VariableUse, ...], Meta(min_length=9, max_length=9)]
    performance: tuple[Figure, ...]
    fairness: tuple[Group, ...]
    informed_by: tuple[str, ...]
    tried: tuple[str, ...]
    attribution: tuple[str, ...]
