"""What a demo shows: a live table on a terminal, plain lines elsewhere; then the same summary.

Patients are simulated or from a public data set, so their identifiers may be shown here.
"""

from collections import deque
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from schemas.messages import Alert, BasisInput, EarlyWarning, Finding, Score
from worker.demo_report import PicturesReport, Report

SHOWN_PATIENTS = 12
SHOWN_ALERTS = 8
TOP_INPUTS = 3

PLAIN_ALERTS = 30
"""Alerts shown one by one where there is no terminal; after them one in `PLAIN_EVERY`."""

PLAIN_EVERY = 25

_BARS = " ▁▂▃▄▅▆▇█"
_TREND = 16
_STYLES = {"raised": "bold red", "escalated": "bold white on red", "resolved": "green", "expired": "dim"}


class View(Protocol):
    """Where a demo shows its course. Used as a context manager; one thread."""

    def stage(self, text: str) -> None:
        """What the demo does next."""
        ...

    def progress(self, sent: int, count: int) -> None:
        """How many of the records are sent."""
        ...

    def score(self, score: Score) -> None:
        """A score came."""
        ...

    def alert(self, alert: Alert) -> None:
        """An alert came."""
        ...

    def finding(self, finding: Finding) -> None:
        """A finding came."""
        ...

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def view_for(console: Console) -> View:
    """The live view on a terminal, plain lines elsewhere."""
    return LiveView(console) if console.is_terminal else PlainView(console)


class PlainView:
    """One line for each step and each alert but updates; alerts beyond the first ones are thinned out."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._alerts = 0

    def stage(self, text: str) -> None:
        self._print(text)

    def progress(self, sent: int, count: int) -> None:
        pass

    def score(self, score: Score) -> None:
        pass

    def alert(self, alert: Alert) -> None:
        if alert.transition == "updated":
            return
        self._alerts += 1
        if self._alerts <= PLAIN_ALERTS or self._alerts % PLAIN_EVERY == 0:
            self._print(alert_line(alert))
        if self._alerts == PLAIN_ALERTS:
            self._print(f"... from here one alert in {PLAIN_EVERY} is shown")

    def finding(self, finding: Finding) -> None:
        pass

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


class _Line:
    """A patient's line in the table."""

    def __init__(self) -> None:
        self.risk = 0.0
        self.asof = ""
        self.open: dict[str, str] = {}
        self.picture = ""
        self.trend: deque[float] = deque(maxlen=_TREND)
        self._hour = -1

    def add(self, score: Score) -> None:
        """Take a score; the trend keeps the last one of each hour."""
        self.risk, self.asof = score.risk, f"{score.time:%d %b %H:%M}"
        hour = int(score.time.timestamp()) // 3600
        if hour == self._hour and self.trend:
            self.trend[-1] = score.risk
        else:
            self.trend.append(score.risk)
        self._hour = hour


class LiveView:
    """Patients by risk, and the last alerts, redrawn a few times a second."""

    def __init__(self, console: Console) -> None:
        self._patients: dict[str, _Line] = {}
        self._alerts: deque[Text] = deque(maxlen=SHOWN_ALERTS)
        self._stage = ""
        self._progress = Text()
        self._live = Live(console=console, refresh_per_second=4, get_renderable=self.__rich__)

    def stage(self, text: str) -> None:
        self._stage = text

    def progress(self, sent: int, count: int) -> None:
        filled = 30 * sent // max(count, 1)
        self._progress = Text.assemble(
            ("━" * filled, "cyan"), ("━" * (30 - filled), "dim"), f" {sent:,} of {count:,} records sent"
        )

    def score(self, score: Score) -> None:
        self._patients.setdefault(score.patient, _Line()).add(score)

    def alert(self, alert: Alert) -> None:
        line = self._patients.setdefault(alert.patient, _Line())
        line.open[alert.model.name] = "" if alert.transition in ("resolved", "expired") else alert.severity
        if alert.transition != "updated":
            style = _STYLES.get(alert.transition, "")
            self._alerts.append(Text(alert_line(alert), style, no_wrap=True, overflow="ellipsis"))

    def finding(self, finding: Finding) -> None:
        line = self._patients.setdefault(finding.patient, _Line())
        line.picture = f"{finding.outcome} {finding.risk:.2f}"

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def __rich__(self) -> Group:
        table = Table(
            "patient", "risk", "", "by hour", "picture", "open alert", "as of", expand=True, box=None
        )
        riskiest = sorted(self._patients.items(), key=lambda item: -item[1].risk)
        for patient, line in riskiest[:SHOWN_PATIENTS]:
            severities = ", ".join(f"{name} {open_}" for name, open_ in line.open.items() if open_)
            style = "bold red" if severities else ""
            bar = "█" * round(20 * line.risk)
            table.add_row(
                escape(patient),
                f"{line.risk:.2f}",
                bar,
                sparkline(line.trend),
                line.picture,
                severities,
                line.asof,
                style=style,
            )
        known = f"{len(self._patients)} patients" if self._patients else ""
        return Group(Text(f"{self._stage}  {known}", "bold"), self._progress, table, "", *self._alerts)


def sparkline(risks: "deque[float]") -> str:
    """Risks from 0 to 1 as bars of eighths."""
    return "".join(_BARS[min(round(8 * risk), 8)] for risk in risks)


def alert_line(alert: Alert) -> str:
    """One alert in one line; behind each input, what it adds to the risk."""
    line = f"{alert.time:%Y-%m-%d %H:%M}  {alert.transition:<9}  {alert.patient:<12}  {alert.severity:<8}  "
    warning = "" if alert.news2 is None else f"{_warning(alert.news2):<11}  "
    if alert.risk is None:
        return f"{line}{warning.strip() or 'NEWS2'} ({_called_for(alert)})  {_scoring(alert)}"
    inputs = ", ".join(_input(i) for i in weightiest(alert.inputs)) or _pictured(alert)
    return f"{line}risk {alert.risk:.2f} (threshold {alert.threshold:g})  {warning}{inputs}"


def _pictured(alert: Alert) -> str:
    """What an imaging alert rests on."""
    found = [finding for finding in alert.findings if finding.model.name == alert.model.name]
    words = [" ".join(filter(None, (f.modality, f.body_part, f.view))) or "a picture" for f in found]
    return "".join(f"{alert.model.name} on {word}" for word in words[:1])


def _called_for(alert: Alert) -> str:
    """What an alert of NEWS2's own goes by: the threshold, or a 3 in one parameter."""
    single = alert.news2 is not None and alert.points is not None and alert.news2.low < alert.points
    return "3 in one parameter" if single else f"threshold {alert.threshold:g}"


def _scoring(alert: Alert) -> str:
    """The parameters that have points, with these."""
    parts = alert.news2.parts if alert.news2 is not None else ()
    return ", ".join(f"{part.parameter} {part.low}" for part in parts if part.low)


def _warning(warning: EarlyWarning) -> str:
    """NEWS2 as a number, or as the interval of an incomplete set."""
    return f"NEWS2 {warning.low}" if warning.complete else f"NEWS2 {warning.low}-{warning.high}"


def weightiest(inputs: tuple[BasisInput, ...]) -> list[BasisInput]:
    """The inputs that change the risk most, whichever way."""
    explained = [i for i in inputs if i.contribution]
    return sorted(explained, key=lambda i: -abs(i.contribution or 0.0))[:TOP_INPUTS]


def _input(measured: BasisInput) -> str:
    unit = "" if measured.unit == "1" else f" {measured.unit}"
    return f"{measured.feature} {measured.value:g}{unit} ({measured.contribution:+.2f})"


def _pictures(pictures: PicturesReport) -> list[str]:
    transitions = ", ".join(f"{count:,} {name}" for name, count in pictures.alerts.items())
    return [
        f"pictures   {pictures.sent:,} sent: {pictures.findings:,} findings, {pictures.dead_lettered:,} "
        "dead-lettered",
        f"by these   {transitions}",
    ]


def summary(report: Report) -> str:
    """The end of a demo, in a few lines."""
    records, alerts, latency = report.records, report.alerts, report.latency_ms
    fates = f"{records.scored:,} scored, {records.stored:,} stored, {records.duplicate:,} duplicate, "
    fates += f"{records.dead_lettered:,} dead-lettered"
    transitions = ", ".join(f"{count:,} {name}" for name, count in alerts.items())
    warnings = ", ".join(f"{count:,} {name}" for name, count in report.news2_alerts.items())
    times = ", ".join(f"{name} {'-' if ms is None else f'{ms:,.0f}'} ms" for name, ms in latency.items())
    cpu = "-" if report.cpu_us_per_event is None else f"{report.cpu_us_per_event:,.0f} µs"
    return "\n".join(
        [
            f"patients   {report.patients:,} from {report.source}",
            f"records    {records.in_:,} in: {fates}; {report.lost:,} lost",
            f"alerts     {transitions}",
            f"by NEWS2   {warnings}",
            *(_pictures(report.pictures) if report.pictures is not None else ()),
            f"latency    {times} from producer to score",
            f"pace       {report.events_per_second:,.0f} records/s, {cpu} of worker CPU a record",
            f"model      {report.model} on {report.backend}",
            *(f"WRONG      {complaint}" for complaint in report.complaints),
        ]
    )
