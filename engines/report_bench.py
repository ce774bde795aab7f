"""A measurement of engines as a picture. Needs the extra `report`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engines import report as _  # noqa: F401  # says which extra is missing
from engines import report_charts


def write_plot(content: Mapping[str, Any], file: Path) -> None:
    """Draw rows per second, and the latency's p50 and p99, over the batch size.

    Args:
        content: what `riskstream model bench --report` writes.
        file: .svg or .png.
    """
    speeds, latencies = {}, {}
    for found in content["backends"].values():
        engine, points = found["engine"], found["points"]
        speeds[engine] = [(point["batch"], point["rows_per_second"]["median"]) for point in points]
        for which in ("p50", "p99"):
            latencies[f"{engine}, {which}"] = [
                (point["batch"], point["latency_ms"][which]) for point in points
            ]
    model = content["model"]
    title = f"{model['name']}/{model['version']} on {content['machine']['cpu']}"
    panels = (("rows per second", speeds), ("ms for a batch", latencies))
    report_charts.over_batches(file, panels, title)
