"""`riskstream feedback`: what somebody says of an alert, by hand."""

import asyncio
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import msgspec
import typer
from rich.console import Console

from schemas.messages import AlertReference, DismissalReason, FeedbackAction, FeedbackRecord, ModelName

if TYPE_CHECKING:
    from worker.config import Settings


def feedback(
    alert_id: Annotated[str, typer.Argument(help="Id of the alert.", metavar="ALERT_ID")],
    action: Annotated[
        FeedbackAction,
        typer.Argument(help=f"What is said of it: {', '.join(get_args(FeedbackAction))}.", metavar="ACTION"),
    ],
    *,
    reason: Annotated[
        DismissalReason | None,
        typer.Option(help=f"Why it is dismissed: {', '.join(get_args(DismissalReason))}.", metavar="REASON"),
    ] = None,
    role: Annotated[str, typer.Option(help="Who says so: a role, never a name; 64 characters at most.")] = "",
    settings_file: Annotated[
        Path | None,
        typer.Option("--settings", help="TOML file of settings; RISKSTREAM_* variables override it."),
    ] = None,
) -> None:
    """Say what became of an alert: it is looked up, and written to the feedback topic.

    An acknowledged alert's episode stays quiet until it worsens, a dismissed one's until its severity rises.
    """
    from worker import config
    from worker.cli_audit import told

    if (reason is not None) != (action == "dismissed"):
        raise typer.BadParameter("a dismissal has a --reason, and nothing else has one")
    if len(role) > 64:
        raise typer.BadParameter("a --role has 64 characters at most")
    with told("feedback"):
        settings = config.load(settings_file)
        topic = asyncio.run(_say(settings, alert_id, action, reason, role))
    Console().print(f"{action}: written to {topic}", highlight=False)


async def _say(
    settings: "Settings", alert_id: str, action: FeedbackAction, reason: DismissalReason | None, role: str
) -> str:
    """Look the alert up and publish what is said of it; returns the topic.

    Raises:
        FatalError: there is no such alert, or no feedback topic.
        RetryError: Kafka does not answer.
    """
    from worker.audit_run import chosen_partitions
    from worker.cluster import describe
    from worker.errors import FatalError
    from worker.history import History
    from worker.publish import Outgoing, Publisher
    from worker.published import find, named

    cluster = await describe(settings, create=False)
    partitions = chosen_partitions(cluster, settings.topic_alerts, ())
    chosen_partitions(cluster, settings.topic_feedback, ())
    async with History(settings) as log:
        found = await find(log, settings.topic_alerts, partitions, named([alert_id]))
    alert = next((each.alert for each in found.alerts if each.alert.id == alert_id), None)
    if alert is None:
        raise FatalError(f"no alert with this id in {settings.topic_alerts}")
    about = AlertReference(
        alert.id, alert.episode, alert.sequence, alert.transition, alert.time, ModelName(alert.model.name)
    )
    said = FeedbackRecord(str(uuid.uuid4()), alert.patient, datetime.now(UTC), about, action, reason, role)
    publisher = Publisher(settings)
    await publisher.start()
    try:
        headers = (("content-type", b"application/json"),)
        key = alert.patient.encode()
        await publisher.publish([Outgoing(settings.topic_feedback, key, msgspec.json.encode(said), headers)])
    finally:
        await publisher.stop()
    return settings.topic_feedback
