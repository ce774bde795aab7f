"""The metrics that a PromQL expression asks for, and by which labels; its grammar is promtool's to check."""

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

from prometheus_client import REGISTRY
from prometheus_client.metrics import MetricWrapperBase

from worker import metrics

WORDS = {"and", "or", "unless", "offset", "bool"}
TARGET_LABELS = {"job", "instance"}

_GROUPING = re.compile(r"\b(?:by|on|without|ignoring|group_left|group_right)\s*\(([^)]*)\)")
_TOKEN = re.compile(r'"[^"]*"|\[[^\]]*\]|\{[^}]*\}|[0-9][\w.]*|[a-zA-Z_:][\w:]*|\S')
_MATCHER = re.compile(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"')

_SUFFIXES = {
    "counter": ("_total",),
    "histogram": ("_bucket", "_sum", "_count"),
    "gauge": ("",),
    "info": ("_info",),
}


class Selector(NamedTuple):
    """One series selector: its metric, and (label, operator, value) of each matcher."""

    metric: str
    matchers: tuple[tuple[str, str, str], ...]


def selectors(expression: str) -> Iterator[Selector]:
    """The series selectors of an expression."""
    tokens = [*_TOKEN.findall(_GROUPING.sub(" ", expression)), ""]
    for token, following in pairwise(tokens):
        if re.match(r"[a-zA-Z_:]", token) and token not in WORDS and following != "(":
            braces = following if following.startswith("{") else ""
            yield Selector(token, tuple(_MATCHER.findall(braces)))


def grouped_labels(expression: str) -> set[str]:
    """The labels that an expression aggregates or joins by."""
    return {label.strip() for labels in _GROUPING.findall(expression) for label in labels.split(",")} - {""}


def exposed() -> dict[str, set[str]]:
    """Every series that Prometheus has of a worker, and its labels."""
    declared = [m for m in vars(metrics).values() if isinstance(m, MetricWrapperBase)]
    labels = {family.name: set(m._labelnames) for m in declared for family in m.describe()}
    series = {"up": set(TARGET_LABELS)}
    for family in REGISTRY.collect():
        for suffix in _SUFFIXES[family.type]:
            le = {"le"} if suffix == "_bucket" else set()
            series[family.name + suffix] = labels.get(family.name, set()) | TARGET_LABELS | le
    return series
