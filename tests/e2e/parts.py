"""The real parts, as processes of this run: on loopback, ended by their own process group."""

import ctypes
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

import httpx
import pytest

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
# trust_env: a proxy of the environment must not come between us and loopback. Keycloak makes RSA keys slowly.
http = httpx.Client(trust_env=False, timeout=30)
_libc = ctypes.CDLL(None)
_given = set()


def free_port():
    """A free port, and never the same one twice: between asking and listening it belongs to nobody."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        if port not in _given:
            _given.add(port)
            return port


def wait_until(condition, what, seconds=10):
    """The first truth that `condition` returns; a connection error counts as not yet."""
    end = time.monotonic() + seconds
    while True:
        try:
            if result := condition():
                return result
        except httpx.TransportError:
            pass
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.05)


def skip(why):
    """What cannot be had here; on CI nothing is skipped."""
    (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(why)


def ahead_by(seconds):
    """The environment of a program whose wall clock is so much ahead of ours, or by what a file says at any time.
    Not by the command faketime, which would stand between us and the program."""
    if not shutil.which("faketime"):
        skip("no faketime (Debian: faketime)")
    library = "/usr/$LIB/faketime/libfaketimeMT.so.1"  # the loader knows $LIB
    if isinstance(seconds, pathlib.Path):
        fake = {"FAKETIME_TIMESTAMP_FILE": str(seconds), "FAKETIME_NO_CACHE": "1"}
    else:
        fake = {"FAKETIME": f"{seconds:+}s"}
    return {"LD_PRELOAD": library, "FAKETIME_DONT_FAKE_MONOTONIC": "1"} | fake


def _end_with_parent():
    pr_set_pdeathsig = 1  # even a killed pytest leaves no Keycloak behind
    _libc.prctl(pr_set_pdeathsig, signal.SIGTERM)


class Mount:
    """A folder with one file in it, as kubelet mounts a ConfigMap: `..data` points to the version in force,
    is swapped for the next one, and the old one is gone."""

    def __init__(self, folder, name, text):
        self.path = folder / name
        folder.mkdir()
        self.path.symlink_to(f"..data/{name}")
        self.write(text)

    def write(self, text):
        version = pathlib.Path(tempfile.mkdtemp(prefix="..", dir=self.path.parent))
        (version / self.path.name).write_text(text)
        data, beside = self.path.parent / "..data", self.path.parent / "..data_tmp"
        old = data.resolve() if data.exists() else None
        beside.symlink_to(version.name)
        beside.rename(data)
        if old:
            shutil.rmtree(old)


class Part:
    """A program on `port`; all that it says goes to one file, also over restarts."""

    name = "part"
    patience = 90  # seconds until it is up
    folder = HERE / "backends"

    def __init__(self, logs, port=None):
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = pathlib.Path(logs) / f"{self.name}-{self.port}.log"
        self.process = None

    def command(self):
        raise NotImplementedError

    def environment(self):
        return {}

    def is_up(self):
        raise NotImplementedError

    def start(self, wait=True):
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command(),
                env=os.environ | self.environment(),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )
        if wait:
            self.wait_until_up()
        return self

    def wait_until_up(self):
        def up():
            assert self.process.poll() is None, f"{self.name} ended at once:\n{self.output()[-3000:]}"
            return self.is_up()

        wait_until(up, f"{self.name} is up", self.patience)

    def signal(self, number):
        os.killpg(self.process.pid, number)

    def kill(self):
        """SIGKILL, and it is gone."""
        self.signal(signal.SIGKILL)
        self.process.wait()
        self.process = None

    def stop(self, patience=20):
        """SIGTERM to the whole group, SIGKILL to what is left; the exit code."""
        process, self.process = self.process, None
        if process is None:
            return None
        try:
            os.killpg(process.pid, signal.SIGTERM)
            return process.wait(patience)
        except ProcessLookupError:
            return process.wait(patience)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return process.wait()

    def output(self):
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def __enter__(self):
        return self.start()

    def __exit__(self, *_):
        self.stop()


class Daphne(Part):
    name = "daphne"

    def command(self):
        return [sys.executable, "-m", "daphne", "-b", "127.0.0.1", "-p", str(self.port), "chat:application"]

    def is_up(self):
        return http.get(f"{self.url}/api/echo/").status_code == 200

    def wait_until_left(self, path, code=1001):
        """Until a consumer's disconnect has run; who is ended by the gate goes away with 1001."""
        line = "left {}.{} with {}".format(*path.split("/")[2:4], code)
        wait_until(lambda: f"{line}\n" in self.output(), f"the consumer's disconnect: {line}", 5)


class Pages(Daphne):
    name = "pages"

    def command(self):
        return [sys.executable, "-m", "daphne", "-b", "127.0.0.1", "-p", str(self.port), "pages:application"]

    def is_up(self):
        return http.get(self.at("127.0.0.1")).status_code == 200

    def at(self, host):
        """A page of another origin than the gate's, without any policy."""
        return f"http://{host}:{self.port}/pages/plain/"


class Uvicorn(Part):
    name = "uvicorn"

    def command(self):
        # At level info it writes each query string, with the token that it is given.
        return [sys.executable, "-m", "uvicorn", "--host", "127.0.0.1", "--port", str(self.port), "--log-level", "warning", "echo:app"]

    def is_up(self):
        return http.get(f"{self.url}/openapi.json").status_code == 200


class Reflector(Part):
    """Sends every WebSocket message back; `kind` is deflate, with compression, or plain, without."""

    def __init__(self, logs, kind):
        self.name = f"reflector-{kind}"
        self.kind = kind
        super().__init__(logs)

    def command(self):
        return [sys.executable, "reflector.py", str(self.port), self.kind]

    def is_up(self):
        return http.get(self.url).status_code == 200


class Redis(Part):
    """Keeps nothing on disk: who starts it again finds it empty."""

    name = "redis"

    @staticmethod
    def is_installed():
        return shutil.which("redis-server") is not None

    def command(self):
        return ["redis-server", "--bind", "127.0.0.1", "--port", str(self.port), "--save", "", "--appendonly", "no"]

    def is_up(self):
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(7) == b"+PONG\r\n"
        except OSError:
            return False


class Prometheus(Part):
    name = "prometheus"

    def __init__(self, logs, target, rules=()):
        """`rules`: groups of alerts."""
        super().__init__(logs)
        self.data = pathlib.Path(logs) / f"prometheus-{self.port}"
        self.target = target
        self.rules = rules

    @staticmethod
    def is_installed():
        return shutil.which("prometheus") is not None

    def command(self):
        self.data.mkdir(exist_ok=True)
        config = self.data / "prometheus.yml"
        rules = self.data / "rules.yml"
        rules.write_text(json.dumps({"groups": list(self.rules)}))  # JSON is YAML
        config.write_text(
            "global: { scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s }\n"
            f"rule_files: ['{rules}']\n"
            f"scrape_configs: [{{ job_name: sidegate, static_configs: [{{ targets: ['{self.target}'] }}] }}]\n"
        )
        return [
            "prometheus",
            f"--config.file={config}",
            f"--storage.tsdb.path={self.data}",
            f"--web.listen-address=127.0.0.1:{self.port}",
            "--log.level=warn",
        ]

    def is_up(self):
        return http.get(f"{self.url}/-/ready").status_code == 200

    def targets(self):
        return http.get(f"{self.url}/api/v1/targets").json()["data"]["activeTargets"]

    def series(self, expression):
        """What an instant query finds: labels and value of each series."""
        answer = http.get(f"{self.url}/api/v1/query", params={"query": expression}).json()
        assert answer["status"] == "success", f"{expression}: {answer}"
        return [(series["metric"], float(series["value"][1])) for series in answer["data"]["result"]]

    def query(self, expression):
        """The values of an instant query."""
        return [value for _, value in self.series(expression)]

    def firing(self):
        """The names of the alerts that fire."""
        alerts = http.get(f"{self.url}/api/v1/alerts").json()["data"]["alerts"]
        return {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"}
