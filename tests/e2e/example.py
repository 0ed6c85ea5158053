"""The folders of examples/, each with all its parts: for the suite on free ports, for a reader on their own ones
(examples/run). What a folder has says what is started:

    realm.json           a realm of Keycloak, named as the folder; its first client is the one that users sign in by
    backend/asgi.py      a backend run by Daphne; backend/app.py: one run by uvicorn; told ISSUER and REDIS_URL
    sidegate.toml        the gate; a Redis too, where it says redis://
    nginx.conf           a site of nginx before the gate
"""

import argparse
import json
import re
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import tomllib
from contextlib import ExitStack, contextmanager

import httpx

from gate import BINARY, AnyGate
from parts import ROOT, Mount, Part, Redis, free_port, http
from sso import Keycloak

EXAMPLES = ROOT / "examples"
NAMES = sorted(folder.parent.name for folder in EXAMPLES.glob("*/sidegate.toml"))
# As the files of the examples have them.
PORTS = {"gate": 8080, "admin": 9090, "backend": 8000, "keycloak": 8081, "redis": 6380, "nginx": 8443}


class Backend(Part):
    name = "backend"

    def __init__(self, logs, example):
        super().__init__(logs, example.ports["backend"])
        self.example = example
        self.folder = example.folder / "backend"

    def command(self):
        host, port = "127.0.0.1", str(self.port)
        if (self.folder / "asgi.py").exists():
            return [sys.executable, "-m", "daphne", "-b", host, "-p", port, "asgi:application"]
        # With its access log on, which has query strings in it: the gate has taken the token out.
        return [sys.executable, "-m", "uvicorn", "--host", host, "--port", port, "app:app"]

    def environment(self):
        redis = f"redis://127.0.0.1:{self.example.ports['redis']}"
        return {"ISSUER": self.example.issuer, "REDIS_URL": redis, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1"}

    def is_up(self):
        return http.get(self.url).status_code


class ExampleGate(AnyGate):
    def __init__(self, logs, example):
        super().__init__(logs, example.ports["gate"])
        self.keycloak = example.keycloak
        text = example.text("sidegate.toml")
        self.namespace = tomllib.loads(text).get("metrics", {}).get("namespace", self.namespace)
        self.admin_address = f"127.0.0.1:{example.ports['admin']}"
        self.probes = f"http://{self.admin_address}"
        self.mount = Mount(self.log.with_suffix(".d"), "sidegate.toml", text)
        self.config = self.mount.path

    def environment(self):
        return {
            "SIDEGATE__ADMIN__ADDRESS": self.admin_address,
            "SIDEGATE__DRAIN__DELAY": "0s",  # nobody waits for its end
            "SIDEGATE__DRAIN__SPREAD": "0s",
        }


class Site(Part):
    """nginx with a site of /etc/nginx/sites-enabled, and a certificate made for the day."""

    name = "nginx"

    def __init__(self, logs, example):
        super().__init__(logs, example.ports["nginx"])
        self.home = self.log.with_suffix(".d")
        self.home.mkdir()
        make_certificate(self.home)
        self.tls = ssl.create_default_context(cafile=self.home / "cert.pem")
        # The session tickets of 1.3, sent after its handshake, wake the thread of websockets.sync that reads; it then
        # reads while another writes, which no TLS connection bears: such a handshake hangs now and then.
        self.tls.maximum_version = ssl.TLSVersion.TLSv1_2
        site = example.text("nginx.conf")
        for folder in (f"/etc/ssl/{example.name}", "/var/log/nginx"):
            site = site.replace(folder, str(self.home))
        (self.home / "site.conf").write_text(site)
        folders = "".join(f"{kind}_temp_path {self.home}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        (self.home / "nginx.conf").write_text(
            f"daemon off;\nmaster_process off;\npid {self.home}/pid;\nerror_log stderr warn;\nevents {{}}\n"
            f"http {{\n{folders}include {self.home}/site.conf;\n}}\n"
        )

    def command(self, *arguments):
        return ["nginx", "-e", "stderr", "-p", str(self.home), "-c", str(self.home / "nginx.conf"), *arguments]

    def is_up(self):
        return httpx.get(f"https://127.0.0.1:{self.port}/", verify=self.tls, trust_env=False).status_code


def make_certificate(folder):
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1",
         "-keyout", folder / "key.pem", "-out", folder / "cert.pem", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"],
        check=True, capture_output=True,
    )  # fmt: skip


class Example:
    """`with Example(name, logs, keycloak) as example`: its gate, its backend, its tokens."""

    def __init__(self, name, logs, keycloak, ports=None):
        self.name = name
        self.folder = EXAMPLES / name
        self.ports = (ports or {part: free_port() for part in PORTS}) | {"keycloak": keycloak.port}
        self.keycloak = keycloak
        self.issuer = keycloak.issuer(name)
        self.realm = json.loads(self.text("realm.json"))
        self.client = self.realm["clients"][0]["clientId"]
        self.scope = "openid organization:*" if self.realm.get("organizationsEnabled") else "openid"
        self.backend = Backend(logs, self)
        self.gate = ExampleGate(logs, self)
        self.redis = Redis(logs, self.ports["redis"]) if "redis://" in self.text("sidegate.toml") else None
        self.nginx = Site(logs, self) if (self.folder / "nginx.conf").exists() else None
        self.parts = [part for part in (self.redis, self.backend, self.gate, self.nginx) if part]
        self.url = f"https://localhost:{self.nginx.port}" if self.nginx else self.gate.url

    def text(self, file):
        """A file of the example, with the ports of this run."""
        actual = {str(port): str(self.ports[part]) for part, port in PORTS.items()}
        return re.sub(r"(?<=:)\d{4}\b", lambda found: actual.get(found[0], found[0]), (self.folder / file).read_text())

    def login(self, user, **options):
        return self.keycloak.login(user, **{"realm": self.name, "client": self.client, "scope": self.scope} | options)

    @contextmanager
    def tokens_that_live(self, seconds):
        """Whatever the realm says: a login or a renewal in here is good for so long."""
        path = f"/realms/{self.name}"
        self.keycloak.admin("PUT", path, json={"accessTokenLifespan": seconds})
        try:
            yield
        finally:
            self.keycloak.admin("PUT", path, json={"accessTokenLifespan": self.realm["accessTokenLifespan"]})

    def __enter__(self):
        self.keycloak.add_realm(self.realm)
        with ExitStack() as started:
            for part in self.parts:
                started.enter_context(part)
            self.started = started.pop_all()
        return self

    def __exit__(self, *failure):
        return self.started.__exit__(*failure)


def in_use(port):
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


def what_to_paste(example):
    people = [(user["username"], user["credentials"][0]["value"]) for user in example.realm["users"]]
    user, password = people[0]
    form = f"-d grant_type=password -d 'scope={example.scope}' -d client_id={example.client} -d username={user} -d password={password}"
    return f"""
{example.name} is up; Ctrl-C ends it.

page   {example.url}/
users  {", ".join(f"{user} ({password})" for user, password in people)}
token  TOKEN=$(curl -s {example.issuer}/protocol/openid-connect/token {form} | sed 's/.*"access_token":"\\([^"]*\\)".*/\\1/')
log    {example.gate.log}
"""


def main():
    parser = argparse.ArgumentParser(prog="examples/run", description="An example with all its parts, on loopback.")
    parser.add_argument("name", choices=NAMES)
    name = parser.parse_args().name
    if not BINARY.is_file():
        sys.exit(f"there is no gate at {BINARY}")
    if taken := [f"{port} ({part})" for part, port in PORTS.items() if in_use(port)]:
        sys.exit(f"already in use on 127.0.0.1: {', '.join(taken)}")
    for ending in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ending, lambda number, _: sys.exit(128 + number))
    with tempfile.TemporaryDirectory(prefix="sidegate-") as logs:
        print("starting Keycloak, which takes half a minute …", file=sys.stderr)
        with Keycloak(logs, realms=(), port=PORTS["keycloak"]) as keycloak, Example(name, logs, keycloak, PORTS) as example:
            print(what_to_paste(example), flush=True)
            signal.pause()


if __name__ == "__main__":
    main()
