"""What k8s/ promises, read from the files: schemas of several Kubernetes versions, and the rules that a
schema cannot know. Each rule stands for a pod that went wrong on a real kubelet.

manifests.py DIR [RENDERED] [--extract OUT]   RENDERED: the output of kustomize; OUT gets sidegate.toml and
the alerts' groups as promtool reads them. Prints every problem, exits 1 if there is one.
"""

import pathlib
import re
import sys
import tomllib

import kubernetes_validate
import yaml

# The first in which native sidecars are on by default, the one in which they are stable, the newest known.
VERSIONS = ["1.29", "1.33", kubernetes_validate.latest_version()]
OF_THE_OPERATOR = {"PrometheusRule", "PodMonitor"}
OF_OTHER_TOOLS = {"kustomization.yaml", "alerts_test.yaml"}
problems = []


def expect(holds, what):
    if not holds:
        problems.append(what)


class Strict(yaml.SafeLoader):
    """PyYAML lets a repeated key win silently."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        repeated = {key for key in keys if keys.count(key) > 1}
        if repeated:
            raise yaml.YAMLError(f"line {node.start_mark.line + 1}: repeated: {repeated}")
        return super().construct_mapping(node, deep)


def read(path):
    try:
        return [document for document in yaml.load_all(path.read_text(), Strict) if document]
    except yaml.YAMLError as error:
        problems.append(f"{path.name}: {error}")
        return []


def check_schema(name, document):
    if document["kind"] in OF_THE_OPERATOR:
        return
    for version in VERSIONS:
        try:
            kubernetes_validate.validate(document, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            where = ".".join(str(step) for step in error.path)
            problems.append(f"{name}: Kubernetes {version}: {where}: {error.message}")


def seconds(text):
    match = re.fullmatch(r"(\d+)(s|m)", text)
    return int(match[1]) * {"s": 1, "m": 60}[match[2]] if match else float("nan")


def port(address):
    return int(address.rpartition(":")[2])


def check_container(container):
    name = container["name"]
    security = container.get("securityContext", {})
    expect(isinstance(security.get("runAsUser"), int) and security["runAsUser"] > 0, f"{name}: runAsUser is a number, not 0")
    expect(security.get("allowPrivilegeEscalation") is False, f"{name}: allowPrivilegeEscalation: false")
    expect(security.get("readOnlyRootFilesystem") is True, f"{name}: readOnlyRootFilesystem: true")
    expect(security.get("capabilities") == {"drop": ["ALL"]}, f"{name}: capabilities: drop ALL, add none")
    expect(not security.get("privileged"), f"{name}: not privileged")
    resources = container.get("resources", {})
    expect({"cpu", "memory"} <= resources.get("requests", {}).keys(), f"{name}: requests cpu and memory")
    expect("memory" in resources.get("limits", {}), f"{name}: a memory limit")
    expect("cpu" not in resources.get("limits", {}), f"{name}: no cpu limit: it throttles every session at once")
    for mount in container.get("volumeMounts", []):
        expect("subPath" not in mount, f"{name}: subPath of {mount['mountPath']}: its content never changes again")
    image = container["image"]
    tag = image.rpartition(":")[2]
    expect("/" not in image and tag not in (image, "latest"), f"{name}: image {image}: a plain name with a version")


def check_pod(spec, config):
    gates = [c for c in spec.get("initContainers", []) if c.get("restartPolicy") == "Always"]
    expect(len(gates) == 1 and len(spec["containers"]) == 1, "one native sidecar (initContainer, restartPolicy: Always), one backend")
    if problems:
        return None, None
    gate, backend = gates[0], spec["containers"][0]
    for container in (gate, backend):
        check_container(container)
    expect(gate["securityContext"]["runAsUser"] != backend["securityContext"]["runAsUser"], "gate and backend are two users")
    expect(spec.get("automountServiceAccountToken") is False, "automountServiceAccountToken: false")
    expect(spec.get("securityContext", {}).get("runAsNonRoot") is True, "runAsNonRoot: true")
    expect(spec.get("securityContext", {}).get("seccompProfile") == {"type": "RuntimeDefault"}, "seccompProfile RuntimeDefault")

    listen, probes = port(config["listen"]["address"]), port(config["admin"]["probes"])
    declared = {entry["name"]: entry["containerPort"] for entry in gate["ports"]}
    expect(set(declared.values()) == {listen, probes}, f"the gate's ports are those of the configuration: {listen}, {probes}")
    expect(not backend.get("ports"), "the backend declares no port: it is on loopback")
    expect("127.0.0.1" in config["upstream"]["url"] and "127.0.0.1" in backend["command"], "the backend is on loopback only")

    expect(gate["lifecycle"]["preStop"].get("exec", {}).get("command") == ["/sidegate", "drain", "--wait"], "the gate's preStop drains and waits")
    hook = backend["lifecycle"]["preStop"].get("httpGet", {})
    expect(hook.get("path") == "/drained" and hook.get("port") == probes, "the backend's preStop is httpGet /drained on the number of the probes port")
    for kind in ("startupProbe", "livenessProbe"):
        expect(gate[kind]["httpGet"] == {"path": "/livez", "port": probes}, f"the gate's {kind} is /livez, never /readyz (deadlock)")
    expect(gate["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": probes}, "the gate's readinessProbe is /readyz")
    expect(gate["readinessProbe"]["periodSeconds"] * gate["readinessProbe"]["failureThreshold"] <= seconds(config["drain"]["delay"]), "not ready is noticed within [drain] delay")
    for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
        probe = backend.get(kind, {"exec": {}})
        expect("exec" in probe or probe.get("httpGet", {}).get("port") == listen, f"the backend's {kind}: kubelet cannot reach loopback: exec, or through the gate")
    drain = seconds(config["drain"]["delay"]) + seconds(config["drain"]["deadline"])
    expect(spec.get("terminationGracePeriodSeconds", 30) > drain, f"terminationGracePeriodSeconds > [drain] delay + deadline = {drain} s")

    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in gate["volumeMounts"]}
    expect("configMap" in mounts.get("/etc/sidegate", {}), "the ConfigMap is mounted at /etc/sidegate")
    scheme, _, socket = config["admin"]["address"].partition(":")
    home = mounts.get(str(pathlib.PurePosixPath(socket).parent), {})
    expect(scheme == "unix" and "emptyDir" in home, "[admin] address is a unix socket in an emptyDir")
    expect(home.get("name") not in [mount["name"] for mount in backend.get("volumeMounts", [])], "the backend does not mount the admin socket")
    return listen, probes


def check_network(documents, listen, probes, declared):
    targets = [entry["targetPort"] for entry in documents["Service"]["spec"]["ports"]]
    expect(targets == [listen], f"the Service leads to the gate, by number: {listen}")
    rules = {rule["ports"][0]["port"]: rule.get("from") for rule in documents["NetworkPolicy"]["spec"]["ingress"]}
    expect(set(rules) == {listen, probes}, f"NetworkPolicy: the ports {listen} and {probes}, by number")
    expect(listen in rules and rules[listen] is None, "NetworkPolicy: the gate's port for all")
    expect(rules.get(probes), "NetworkPolicy: the probes port only `from` monitoring")
    endpoints = documents["PodMonitor"]["spec"]["podMetricsEndpoints"]
    expect([declared.get(entry["port"]) for entry in endpoints] == [probes], "PodMonitor: the name of the probes port")
    labels = documents["Deployment"]["spec"]["template"]["metadata"]["labels"]
    for kind, selector in [
        ("Deployment", documents["Deployment"]["spec"]["selector"]["matchLabels"]),
        ("Service", documents["Service"]["spec"]["selector"]),
        ("NetworkPolicy", documents["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"]),
        ("PodMonitor", documents["PodMonitor"]["spec"]["selector"]["matchLabels"]),
    ]:
        expect(selector and selector.items() <= labels.items(), f"{kind} selects the pods of the Deployment")


def check_alerts(rule):
    for alert in (alert for group in rule["spec"]["groups"] for alert in group["rules"]):
        name = alert["alert"]
        expect({"summary", "description", "runbook"} <= alert["annotations"].keys(), f"{name}: summary, description, runbook")
        expect(seconds(alert.get("for", "0s")) >= 300, f"{name}: for >= 5m: a gate three minutes old is no alert")
        expect(alert["labels"].get("severity") in ("info", "warning", "critical"), f"{name}: severity")


def main(directory, rendered, out):
    documents = {}
    for path in sorted(directory.glob("*.yaml")):
        for document in read(path):
            if path.name not in OF_OTHER_TOOLS:
                check_schema(path.name, document)
                expect(document["kind"] not in documents, f"{path.name}: a second {document['kind']}")
                documents[document["kind"]] = document
    if rendered:
        for document in read(rendered):
            check_schema("kustomize", document)
    else:
        for name in read(directory / "kustomization.yaml")[0]["resources"]:
            expect((directory / name).is_file(), f"kustomization.yaml: no file {name}")
    if problems:
        return
    text = documents["ConfigMap"]["data"]["sidegate.toml"]
    config = tomllib.loads(text)
    spec = documents["Deployment"]["spec"]["template"]["spec"]
    listen, probes = check_pod(spec, config)
    if listen:
        declared = {entry["name"]: entry["containerPort"] for entry in spec["initContainers"][0]["ports"]}
        check_network(documents, listen, probes, declared)
    check_alerts(documents["PrometheusRule"])
    if out:
        (out / "sidegate.toml").write_text(text)
        (out / "alerts.rules.yaml").write_text(yaml.safe_dump({"groups": documents["PrometheusRule"]["spec"]["groups"]}))


if __name__ == "__main__":
    arguments = sys.argv[1:]
    target = pathlib.Path(arguments.pop(arguments.index("--extract") + 1)) if "--extract" in arguments else None
    paths = [pathlib.Path(argument) for argument in arguments if argument != "--extract"]
    main(paths[0], paths[1] if len(paths) > 1 else None, target)
    for problem in problems:
        print(f"  {problem}", file=sys.stderr)
    sys.exit(bool(problems))
