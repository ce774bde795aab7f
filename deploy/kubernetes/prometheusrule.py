"""Write prometheusrule.yaml, which the Prometheus Operator reads, from the rules in deploy/prometheus.

Usage: python deploy/kubernetes/prometheusrule.py
"""

from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).resolve().parent
RULES = FOLDER.parent / "prometheus"
RESOURCE = FOLDER / "prometheusrule.yaml"
HEAD = "# Made from deploy/prometheus by prometheusrule.py (make rules); change the rules there.\n"


def resource() -> dict[str, Any]:
    """The rules of both files as one resource."""
    name = {"app.kubernetes.io/name": "riskstream"}
    groups = [
        group
        for file in ("recording.yml", "alerts.yml")
        for group in yaml.safe_load((RULES / file).read_text())["groups"]
    ]
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "riskstream", "namespace": "riskstream", "labels": name},
        "spec": {"groups": groups},
    }


if __name__ == "__main__":
    RESOURCE.write_text(HEAD + yaml.safe_dump(resource(), sort_keys=False, width=110))
