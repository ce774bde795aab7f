"""JSON logs, one line an event, without patient data.

Our own lines carry only fields we choose. Lines of libraries are cut down to logger, level and message
template: their arguments could hold keys, values or payloads.
"""

import logging
import sys
import traceback
from types import TracebackType
from typing import Any, Self

import structlog


class _TemplateFormatter(logging.Formatter):
    """A library's record as JSON: its template without arguments, its exception's type without the text."""

    def __init__(self, instance: str) -> None:
        super().__init__()
        self._render = structlog.processors.JSONRenderer()
        self._instance = instance

    def format(self, record: logging.LogRecord) -> str:
        event: dict[str, Any] = {
            "timestamp": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "instance": self._instance,
            "event": record.msg if isinstance(record.msg, str) and record.args else "(message withheld)",
        }
        if record.name in _OURS:
            event["event"] = record.getMessage()
        elif not record.args and isinstance(record.msg, str) and record.name in _FIRST_LINE:
            event["event"] = record.msg.partition("\n")[0]
        if record.exc_info and record.exc_info[0] is not None:
            event["exception"] = record.exc_info[0].__name__
        return str(self._render(None, "", event))


_FIRST_LINE = frozenset({"asyncio"})
"""Loggers whose messages without arguments begin with a constant line; the rest may hold an error's text."""


_OURS = frozenset({"riskstream.plans"})
"""Loggers of the engines, which name files and versions and see no patient: their lines are whole."""


def configure(level: str, instance: str) -> None:
    """Send every log line to standard error as JSON, the last one of a crash too."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_TemplateFormatter(instance))
    # A library that configured logging may have switched off the loggers there were.
    for name in logging.root.manager.loggerDict:
        logging.getLogger(name).disabled = False
    root = logging.getLogger()
    root.handlers[:] = [handler]
    # Below WARNING the libraries log protocol details; faust.topics logs keys and values at DEBUG.
    root.setLevel(max(logging.WARNING, logging.getLevelName(level)))
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _without_exception_text,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level)),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=False,
    )
    structlog.contextvars.clear_contextvars()
    sys.excepthook = _report_crash


class KafkaErrors(logging.Handler):
    """Keeps aiokafka's lines off the terminal while it is entered; `last` is the last error that one named.

    What aiokafka raises says that no broker could be reached, and its lines alone why.
    """

    last: BaseException | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the error of a line."""
        for argument in record.args if isinstance(record.args, tuple) else ():
            if isinstance(argument, BaseException):
                self.last = argument

    def __enter__(self) -> Self:
        self._logger = logging.getLogger("aiokafka")
        self._before = self._logger.level, self._logger.disabled
        # Whatever another command or library has set, the lines must come here.
        self._logger.setLevel(logging.WARNING)
        self._logger.disabled = False
        self._logger.addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._logger.removeHandler(self)
        level, self._logger.disabled = self._before
        self._logger.setLevel(level)


def _report_crash(kind: type[BaseException], _: BaseException, trace: TracebackType | None) -> None:
    """Name what ended the process and where, without the exception's text."""
    frames = [f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_tb(trace)]
    structlog.get_logger("riskstream").critical("crashed", exception=kind.__name__, frames=frames)


def _without_exception_text(_: Any, __: str, event: Any) -> Any:
    error = event.pop("error", None)
    if isinstance(error, BaseException):
        event["error"] = type(error).__name__
    return event
