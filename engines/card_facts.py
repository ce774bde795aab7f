"""What a model card says that neither the model's config nor its evaluation can tell."""

from msgspec import Struct


class Facts(Struct, frozen=True, kw_only=True):
    """What people know of a model and neither its config nor its evaluation can tell.

    title: the model in a few words. form: what the graph is, in a line. inside: what is computed inside it.
    output_value, output_type: what comes out. intended_*, decision_role: what it is for.
    cautioned: what it is not for. limits: known risks and limitations.
    criteria: who is in the training data and who is not. relevance: of these data to where it would serve.
    representativeness: of the training data; counts by group are added from the evaluation.
    fairness: what was done so that the output is fair. bias: to manage or reduce bias.
    judged: what a reader must know of how the figures came about, beside the evaluation's method.
    informed_by: what the choices made in training rest on. tried: what was tried and is not shipped, and why.
    attribution: sources of the data, as their licences ask.
    reproduced: how the committed files are made again, and what may differ.
    Texts are whole sentences; items of lists may leave the full stop out.
    The rest is the same for every model of this project, as long as nobody has validated one.
    """

    title: str
    form: str
    inside: str
    output_value: str
    output_type: str
    intended_use: str
    intended_population: str
    intended_users: str
    decision_role: str
    cautioned: tuple[str, ...]
    limits: tuple[str, ...]
    criteria: str
    relevance: str
    representativeness: str
    fairness: str
    bias: str
    judged: tuple[str, ...]
    informed_by: tuple[str, ...]
    tried: tuple[str, ...]
    attribution: tuple[str, ...]
    reproduced: str
    developer: str = (
        "The developers of riskstream, an open-source project; contact: the issue tracker of its repository"
    )
    updating: str = (
        "No schedule. A version is replaced when it is trained again on other or better data; its number and "
        "digest change, and every alert names both"
    )
    correcting: str = (
        "No frequency is promised. A fault that is reported is answered in a new version or by withdrawing "
        "this one; a hospital can withdraw it at once by taking the folder out of its model repository"
    )
