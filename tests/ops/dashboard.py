"""What k8s/dashboard.json promises: Grafana's schema, by a round trip through the SDK made of it, and rules that a
schema cannot know.

dashboard.py FILE   Prints every problem, exits 1 if there is one.
"""

import json
import pathlib
import re
import sys

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

KINDS = ["timeseries", "stat", "timeseries", "timeseries", "heatmap", "timeseries", "timeseries"]
problems = []


def expect(holds, what):
    if not holds:
        problems.append(what)


def lost(ours, theirs, where="dashboard"):
    """What we wrote, and the schema does not know: it does not come back. Defaults that are added do no harm."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key, value in ours.items():
            yield from lost(value, theirs[key], f"{where}.{key}") if key in theirs else [f"{where}.{key} is no key of the schema"]
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        for number, (our, their) in enumerate(zip(ours, theirs)):
            yield from lost(our, their, f"{where}[{number}]")
    elif ours != theirs:
        yield f"{where}: {ours!r} comes back as {theirs!r}"


def unit(panel):
    return panel["options"]["yAxis"]["unit"] if panel["type"] == "heatmap" else panel["fieldConfig"]["defaults"]["unit"]


def check_panel(panel):
    name = panel["title"]
    expect(panel.get("description"), f"{name}: a description")
    expect(unit(panel), f"{name}: a unit")
    for target in panel["targets"]:
        expr = target["expr"]
        for place in (panel, target):
            expect(place["datasource"] == {"type": "prometheus", "uid": "${datasource}"}, f"{name}: the data source is the variable")
        metrics = re.findall(r"(\S*?)websocket_\w+(\{[^}]*\})?", expr)
        expect(metrics and all(before.endswith("${prefix}") for before, _ in metrics), f"{name}: each metric begins with ${{prefix}}")
        expect(all('job=~"$job"' in labels for _, labels in metrics), f"{name}: each metric is of $job")
        expect(set(re.findall(r"\[(.*?)\]", expr)) <= {"$__rate_interval"}, f"{name}: each range is $__rate_interval")
        expect((panel["type"] == "heatmap") == (target.get("format") == "heatmap"), f"{name}: a heat map has format heatmap, others not")


def check_grid(panels):
    taken = set()
    for panel in panels:
        grid = panel["gridPos"]
        cells = {(grid["x"] + x, grid["y"] + y) for x in range(grid["w"]) for y in range(grid["h"])}
        expect(not cells & taken, f"{panel['title']} covers another panel")
        expect(grid["x"] + grid["w"] <= 24, f"{panel['title']} is beyond the 24 columns")
        taken |= cells


def main(path):
    ours = json.loads(path.read_text())
    register_default_plugins()
    theirs = json.loads(JSONEncoder().encode(Dashboard.from_json(ours)))
    problems.extend(lost(ours, theirs))
    panels = ours["panels"]
    expect([panel["type"] for panel in panels] == KINDS, f"seven panels: {KINDS}")
    expect(len({panel["id"] for panel in panels}) == len(panels), "each panel has an id of its own")
    expect({variable["name"] for variable in ours["templating"]["list"]} == {"datasource", "prefix", "job"}, "the variables datasource, prefix, job")
    (success,) = (panel for panel in panels if panel["type"] == "stat")
    expect(len(success["fieldConfig"]["defaults"]["thresholds"]["steps"]) > 1, "the success rate has thresholds")
    for panel in panels:
        check_panel(panel)
    check_grid(panels)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
    for problem in problems:
        print(f"  {problem}", file=sys.stderr)
    sys.exit(bool(problems))
