"""The gate under test: its configuration, its probes, its log."""

import json
import os
import re
import secrets
import string
from contextlib import contextmanager, suppress

import httpx

from parts import HERE, ROOT, Mount, Part, ahead_by, free_port, http, wait_until

BINARY = (ROOT / os.environ.get("SIDEGATE_BIN", "target/debug/sidegate")).resolve()
DEFAULTS = {
    "connect_timeout": "1s",
    "refresh": "5m",
    "leeway": "1s",
    "delay": "0s",
    "listen": "trusted_proxies = []",
    # All clients here have one address, and many are refused on purpose.
    "limits": 'attempts_per_address = "off"',
    "more": "",
}


class AnyGate(Part):
    """What every running gate can be asked. Its kinds say where its `config` is, and its `probes`."""

    name = "gate"
    namespace = "sidegate"
    wait = True
    token = None

    def command(self):
        return [str(BINARY), "run", "--config", str(self.config)]

    def is_up(self):
        return self.probe("readyz").status_code == 200

    def probe(self, name):
        return http.get(f"{self.probes}/{name}")

    def admin(self, method, path, **options):
        """An operator's request."""
        return http.request(method, f"{self.admin_url}{path}", headers={"Authorization": f"Bearer {self.token}"}, **options)

    def sessions(self, **filters):
        """Who is on it."""
        return self.admin("GET", "/sessions", params=filters).json()["sessions"]

    def edit(self, *changes, result="success"):
        """Puts new text for old into its configuration, and waits until it says that it has seen it."""
        text = self.config.read_text()
        for old, new in changes:
            assert text.count(old) == 1, f"{text.count(old)} times in the configuration: {old}"
            text = text.replace(old, new)
        before = self.metric("config_reloads_total", result=result)
        self.mount.write(text)
        wait_until(lambda: self.metric("config_reloads_total", result=result) > before, f"a reload: {result}", 5)

    def metric(self, name, **labels):
        """The value of one series."""
        prefix = self.namespace and f"{self.namespace}_"
        wanted = {(name, value) for name, value in labels.items()}
        for line in self.probe("metrics").text.splitlines():
            match = re.fullmatch(rf'{prefix}(\w+)(?:\{{(.*)\}})? (\S+)', line)
            if match and match[1] == name and wanted == set(re.findall(r'(\w+)="([^"]*)"', match[2] or "")):
                return float(match[3])
        raise AssertionError(f"no series {name} {labels}")

    def lines(self, **fields):
        """The log lines with these fields."""
        whole = self.output().rpartition("\n")[0].splitlines()
        parsed = (json.loads(line) for line in whole if line.startswith("{"))
        return [line for line in parsed if fields.items() <= line.items()]

    def line(self, **fields):
        """The one log line with these fields; it may still be on its way."""
        wait_until(lambda: self.lines(**fields), f"a log line with {fields}", 5)
        (line,) = self.lines(**fields)
        return line

    def peak_memory(self):
        """The most bytes of memory that it has had at any moment."""
        with open(f"/proc/{self.process.pid}/status") as status:
            (kilobytes,) = re.findall(r"VmHWM:\s+(\d+) kB", status.read())
        return int(kilobytes) << 10

    def __enter__(self):
        return self.start(self.wait)

    def __exit__(self, failure, *_):
        metrics = ""
        with suppress(httpx.TransportError):  # a test of the drain has let it end
            metrics = self.probe("metrics").text
        self.stop()
        if failure is None:
            assert tokens_in(self.output() + metrics, self.keycloak) == []
            assert self.token is None or self.token not in self.output()
            assert "panicked" not in self.output()


class Gate(AnyGate):
    """The one of gate.toml."""

    def __init__(self, logs, keycloak, daphne, uvicorn, *, realm="demo", wait=True, ahead=0, **settings):
        """`ahead`: so many seconds its clock is before ours, or a file that says how many."""
        super().__init__(logs)
        self.wait = wait
        self.ahead = ahead
        self.keycloak = keycloak
        self.issuer = keycloak.issuer(realm)
        probes_port = free_port()
        self.probes = f"http://127.0.0.1:{probes_port}"
        admin_port = free_port()
        self.admin_url = f"http://127.0.0.1:{admin_port}"
        self.token = secrets.token_urlsafe()
        token_file = self.log.with_suffix(".token")
        token_file.write_text(f"{self.token}\n")
        template = string.Template((HERE / "gate.toml").read_text())
        self.mount = Mount(self.log.with_suffix(".d"), "gate.toml", template.substitute(
            DEFAULTS | settings, port=self.port, admin_port=admin_port, probes_port=probes_port,
            token_file=token_file, issuer=self.issuer, daphne=daphne.url, uvicorn=uvicorn.url,
        ))  # fmt: skip
        self.config = self.mount.path

    def environment(self):
        return ahead_by(self.ahead) if self.ahead else {}


class Demo(Part):
    name = "demo"

    def __init__(self, logs, *options):
        super().__init__(logs)
        self.options = options

    def command(self):
        return [str(BINARY), "demo", "--port", str(self.port), "--log-format", "json", *self.options]

    def is_up(self):
        return http.get(self.url).status_code == 200


def tokens_in(text, keycloak):
    """What is a piece of a token in a text: the start that every JWT has, also once more in base64 as
    Kubernetes' carrier has it, or a signature of this run."""
    starts = re.findall(r".{0,60}(?:eyJ|ZXlK)", text)
    signatures = {token.rpartition(".")[2] for token in keycloak.issued}
    return starts + [signature for signature in signatures if signature[:16] in text]


@contextmanager
def closing_soon(*gates):
    """Each of these gates meanwhile closes one socket for a revocation, and has measured how long that took."""

    def measured():
        name = "revocation_to_close_seconds"
        return [(gate.metric(f"{name}_count"), gate.metric(f"{name}_sum")) for gate in gates]

    before = measured()
    yield
    wait_until(lambda: all(now[0] == then[0] + 1 for now, then in zip(measured(), before)), "the time that it took", 5)
    for (_, now), (_, then) in zip(measured(), before):
        assert -0.001 < now - then < 1, now - then
