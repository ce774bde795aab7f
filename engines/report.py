"""An evaluation as one HTML page that needs no network and no script.

What a page shows is decided by what the evaluation holds: `evaluate.assess` for series models,
`evaluate_images.assess_images` for image models, with the model card beside it. Needs the extra `report`.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

try:
    import jinja2

    from engines import report_charts
except ModuleNotFoundError as error:
    from engines.errors import ExtraError

    raise ExtraError(f"pages need {error.name}: pip install 'riskstream[report]'") from error

from engines import report_drift, report_images, report_stays, report_story
from engines.report_parts import Section
from engines.repository import MODEL_CARD

WARNING = "Not for clinical use without local validation."

PAGE = Path(__file__).with_name("report_page.html")


def page(evaluation: Mapping[str, Any], card: Mapping[str, Any] | None = None) -> str:
    """The page, under 1 MB; the same bytes for the same evaluation.

    Args:
        evaluation: content of an evaluation.json.
        card: content of the model's model_card.json, if there is one.
    """
    model = evaluation.get("model", {})
    return rendered(
        f"{model.get('name', 'model')}, version {model.get('version', '?')}",
        report_story.facts(evaluation),
        evaluation.get("verdict", []),
        _sections(evaluation, card),
    )


def rendered(
    title: str, facts: Sequence[tuple[str, str]], verdict: Sequence[str], sections: Sequence[Section]
) -> str:
    """A page of any report: its facts, what it comes to, and the rest."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = environment.from_string(PAGE.read_text(encoding="utf-8"))
    return template.render(title=title, warning=WARNING, facts=facts, verdict=verdict, sections=sections)


def drift_page(content: Mapping[str, Any]) -> str:
    """The page on drift.

    Args:
        content: what `riskstream drift --report` writes.
    """
    return rendered(
        f"{content['model']['name']}: drift",
        report_drift.facts(content),
        report_drift.verdict(content),
        report_drift.sections(content, report_charts),
    )


def write_page(evaluation: Mapping[str, Any], path: Path, folder: Path | None = None) -> None:
    """Write the page; the model card is taken from the model's folder, if it has one."""
    file = folder / MODEL_CARD if folder is not None else None
    card = json.loads(file.read_bytes()) if file is not None and file.is_file() else None
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page(evaluation, card), encoding="utf-8")


def _sections(evaluation: Mapping[str, Any], card: Mapping[str, Any] | None) -> list[Section]:
    kind = report_images if "judged" in evaluation else report_stays
    made = [*kind.sections(evaluation, report_charts), *report_story.sections(evaluation, card)]
    return [section for section in made if section is not None]
