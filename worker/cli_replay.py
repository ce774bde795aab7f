"""`riskstream replay`: a stretch of the input topic through the path again, into another topic."""

import asyncio
import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from worker.cli_audit import (
    AsJson,
    ReportFile,
    Repository,
    SettingsFile,
    check_report,
    settings_of,
    time_ms,
    told,
)

if TYPE_CHECKING:
    from worker.config import Settings
    from worker.replay import Bound, Replayed, ReplayOrder


def replay(
    *,
    alerts_topic: Annotated[
        str, typer.Option(help="Topic for the alerts; none that the workers use.", metavar="NAME")
    ],
    since: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="First record: a time such as 2026-01-01T08:30:00Z, or an offset; else the log's first.",
            metavar="TIME|OFFSET",
            show_default=False,
        ),
    ] = None,
    until: Annotated[
        str | None,
        typer.Option(
            "--to", help="End of the stretch, itself excluded.", metavar="TIME|OFFSET", show_default=False
        ),
    ] = None,
    partition: Annotated[
        list[int] | None,
        typer.Option(help="This partition alone; may be given again.", metavar="N", show_default=False),
    ] = None,
    scores_topic: Annotated[
        str | None,
        typer.Option(help="Topic for every score as well.", metavar="NAME", show_default=False),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Model to use, instead of the settings'.", metavar="NAME", show_default=False),
    ] = None,
    model_repository: Repository = None,
    create: Annotated[
        bool, typer.Option("--create", help="Make the topics that are missing, as wide as the input topic.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count, and write nothing.")] = False,
    as_json: AsJson = False,
    report: ReportFile = None,
    settings_file: SettingsFile = None,
) -> None:
    """Run a stretch of the input topic through the path again, and publish what comes out into another topic.

    Times are the records' Kafka timestamps. State before the stretch is rebuilt in silence from the rebuild
    horizon. With the workers' model and policies the alerts have the ids and bytes of the live ones, and so
    have those of a second replay. Dead letters are not published. It joins no group and needs no Redis.

    Exit status: 0 when all was published, 1 on failure.
    """
    from worker.replay import ReplayOrder

    order = ReplayOrder(
        _bound("--from", since),
        _bound("--to", until),
        tuple(dict.fromkeys(partition or [])),
        alerts_topic,
        scores_topic,
        model,
        create,
        dry_run,
    )
    with told("replay"):
        order.refuse_empty()
        live = settings_of(settings_file, None)
        settings = settings_of(settings_file, model_repository)
        check_report(report)
        result = _replay(live, settings, order)
        content = json.dumps(_content(result, order), indent=2).encode() + b"\n"
        if report is not None:
            report.write_bytes(content)
    if as_json:
        sys.stdout.buffer.write(content)
        sys.stdout.flush()
    else:
        print(_summary(result, order))


def _bound(option: str, text: str | None) -> "Bound":
    from worker.replay import Bound

    if text is None:
        return Bound()
    return Bound(offset=int(text)) if text.isdecimal() else Bound(time_ms=time_ms(option, text))


def _replay(live: "Settings", settings: "Settings", order: "ReplayOrder") -> "Replayed":
    from worker.cli_told import bar, shown
    from worker.replay import replay

    with bar() as progress:
        return asyncio.run(replay(live, settings, order, shown(progress)))


def _summary(result: "Replayed", order: "ReplayOrder") -> str:
    wrote = f"to {order.alerts}" if not order.dry else "counted, nothing written"
    lines = [f"records    {result.records:,} run again, {result.rebuilt:,} before them in silence"]
    for name, transitions in sorted(result.alerts.items()):
        counts = ", ".join(f"{count:,} {transition}" for transition, count in sorted(transitions.items()))
        lines.append(f"alerts     by {name}: {counts}; {wrote}")
    if not result.alerts:
        lines.append("alerts     none")
    if order.scores is not None:
        lines.append(f"scores     {result.scores:,}; {'to ' + order.scores if not order.dry else 'counted'}")
    lines += [f"model      {_model(result)}", f"ids        {_ids(result)}"]
    for number in result.incomplete:
        lines.append(
            f"warning    partition {number}: the log does not reach the rebuild horizon before --from;"
        )
        lines.append("           the first alerts may differ from the live ones")
    return "\n".join(lines)


def _model(result: "Replayed") -> str:
    model, news2 = result.model, result.policies.shipped["news2"]
    changes = len(result.policies.changes())
    return (
        f"{model.name} version {model.version}, digest {model.digest}; "
        f"policy version {model.policy.version}, NEWS2 policy version {news2.version}; "
        f"{changes} changes of policies"
    )


def _ids(result: "Replayed") -> str:
    if result.live:
        return "the model and policies are those of the settings: ids and bytes are the workers'"
    return (
        "another model than the settings': its alerts are not the workers'. An id rests on the model's name, "
        "not its digest: under the same name, an id may stand for other contents here"
    )


def _content(result: "Replayed", order: "ReplayOrder") -> dict[str, Any]:
    model = result.model
    return {
        "records": result.records,
        "rebuilt": result.rebuilt,
        "alerts": {name: dict(sorted(counts.items())) for name, counts in sorted(result.alerts.items())},
        "scores": result.scores,
        "alerts_topic": order.alerts,
        "scores_topic": order.scores,
        "written": not order.dry,
        "model": {"name": model.name, "version": model.version, "digest": model.digest},
        "policy_version": model.policy.version,
        "news2_policy_version": result.policies.shipped["news2"].version,
        "policy_changes": len(result.policies.changes()),
        "ids_as_live": result.live,
        "incomplete_history": list(result.incomplete),
    }
