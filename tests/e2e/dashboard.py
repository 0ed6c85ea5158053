"""The dashboard and the alerts of k8s/, as a Prometheus is asked for them, and what makes them show something."""

import json
import math
from contextlib import suppress

import yaml
from websockets.exceptions import ConnectionClosed

from client import open_socket, refusal
from parts import ROOT, wait_until

K8S = ROOT / "k8s"
UNMASKED = b"\x81\x02hi"


def queries(prefix):
    """The queries of each panel, as Grafana sends them once its variables are chosen."""
    chosen = {"${prefix}": prefix, "$job": "sidegate", "$__rate_interval": "20s"}

    def filled(expression):
        for variable, value in chosen.items():
            expression = expression.replace(variable, value)
        return expression

    panels = json.loads((K8S / "dashboard.json").read_text())["panels"]
    return {panel["title"]: [filled(target["expr"]) for target in panel["targets"]] for panel in panels}


def alerts(prefix, names):
    """The groups of alerts.yaml with these alerts, as for a [metrics] namespace, that fire at once."""
    (rule,) = yaml.safe_load_all((K8S / "alerts.yaml").read_text().replace("sidegate_", prefix))
    groups = rule["spec"]["groups"]
    for group in groups:
        group["rules"] = [rule | {"for": "0s"} for rule in group["rules"] if rule["alert"] in names]
    assert sorted(rule["alert"] for group in groups for rule in group["rules"]) == sorted(names)
    return groups


def some_of_everything(part, path, token, **options):
    """One socket that talks and ends well, one that breaks the rules, one refusal."""
    with open_socket(part, path, token, **options) as socket:
        socket.send(json.dumps({"say": "hello"}))
        socket.recv(timeout=10)
        socket.recv(timeout=10)
    with open_socket(part, path, token, **options) as socket, suppress(ConnectionClosed):
        socket.socket.sendall(UNMASKED)
        while True:
            socket.recv(timeout=10)
    refusal(part, path, **options)


def shown(prometheus, prefix, load):
    """Under `load`, what each panel shows once all show something: for each of its queries labels and values."""
    wait_until(lambda: prometheus.query("up") == [1], "the first scrape", 30)

    def all_of_them():
        load()
        found = {title: [prometheus.series(expr) for expr in exprs] for title, exprs in queries(prefix).items()}
        values = [[value for _, value in series] for panel in found.values() for series in panel]
        return all(any(value > 0 and math.isfinite(value) for value in series) for series in values) and found

    return wait_until(all_of_them, "each panel shows something", 40)


def check(panels):
    """That what they show is what they are there for."""
    ((success,),) = panels["Success rate"]
    assert 0.3 < success[1] < 0.95, "two of three upgrades are good"
    (failures,) = panels["Failures by reason"]
    assert [labels["reason"] for labels, _ in failures] == ["token_missing"]
    ((_, p95),), ((_, p99),) = panels["Latency of the verdict"]
    assert 0 < p95 <= p99 < 10
    (buckets,) = panels["Duration of connections"]
    counts = [count for _, count in sorted((float(labels["le"]), count) for labels, count in buckets)]
    assert len(counts) > 5 and counts[0] > 0, "all of them were short"
    received, sent = ({labels["message_type"]: rate for labels, rate in series} for series in panels["Messages"])
    assert received["text"] > 0 and sent["text"] > 0
    (errors,) = panels["Errors"]
    assert {labels["error_type"] for labels, rate in errors if rate > 0} == {"protocol"}
