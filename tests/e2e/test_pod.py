"""A pod of k8s/ goes: its containers are processes here, its hooks and times are those of the manifests, five times
faster. Kubelet's part is played (kubelet.py); what happens without the hooks is played as well."""

import asyncio
import json
import re
import signal
import threading
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import cycle
from socket import create_connection

import httpx
import pytest
import yaml
from websockets.asyncio.client import connect as open_async
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from client import by_subprotocol, end_of, seen_by, talks
from gate import BINARY
from kubelet import Container, end_pod
from parts import ROOT, Daphne, Mount, Part, free_port, http, wait_until

SCALE = 1 / 5
HOST = "chat.example.com"
PAGE = f"https://{HOST}"


def manifest(name):
    return yaml.safe_load((ROOT / "k8s" / name).read_text())


def milliseconds(text):
    number, unit = re.fullmatch(r"(\d+)(ms|s)", text).groups()
    return int(number) * {"ms": 1, "s": 1000}[unit]


def scaled(found):
    return f'{found[1]} = "{milliseconds(found[2]) * SCALE:.0f}ms"'


class PodDaphne(Daphne):
    """With the command of the manifest, but for the port and the application."""

    def __init__(self, logs, command):
        super().__init__(logs)
        self.arguments = command

    def command(self):
        assert self.arguments[0] == "daphne"
        places = {"8000": str(self.port), "chat.asgi:application": "chat:application"}
        interpreter = super().command()[:3]
        return interpreter + [places.get(word, word) for word in self.arguments[1:]]


class PodGate(Part):
    """With the ConfigMap, mounted as kubelet does it, but for addresses and the scale of its times."""

    name = "pod-gate"

    def __init__(self, logs, keycloak, daphne):
        super().__init__(logs)
        self.probes_port = free_port()
        self.socket = self.log.with_suffix(".sock")
        text = manifest("configmap.yaml")["data"]["sidegate.toml"]
        for old, new in (
            ("0.0.0.0:8080", f"127.0.0.1:{self.port}"),
            ("0.0.0.0:9091", f"127.0.0.1:{self.probes_port}"),
            ("127.0.0.1:8000", f"127.0.0.1:{daphne.port}"),
            ("/run/sidegate/admin.sock", str(self.socket)),
            ("https://sso.example.com/realms/demo", keycloak.issuer("demo")),
            ("http://keycloak:8080", keycloak.url),
        ):
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        text, count = re.subn(r'^(delay|deadline) = "(\w+)"', scaled, text, flags=re.M)
        assert count == 2
        self.mount = Mount(self.log.with_suffix(".d"), "sidegate.toml", text)

    def command(self):
        return [str(BINARY), "run"]

    def environment(self):
        return {"SIDEGATE_CONFIG": str(self.mount.path)}

    def is_up(self):
        return self.probe("readyz") == 200

    def probe(self, name):
        return http.get(f"http://127.0.0.1:{self.probes_port}/{name}").status_code

    def times(self):
        """`[drain]` in effect, in seconds: the manifest has no spread, for the default is right."""
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(self.socket))) as operator:
            said = operator.get("http://localhost/config").json()["drain"]
        return {name: milliseconds(text) / 1000 for name, text in said.items()}

    def moment(self, event):
        """When it logged this."""
        lines = (json.loads(line) for line in self.output().splitlines() if line.startswith("{"))
        (time,) = [line["time"] for line in lines if line["event"] == event]
        return datetime.fromisoformat(time).timestamp()


@dataclass
class End:
    at: float
    code: int
    reason: str
    talked: bool


class Client(threading.Thread):
    """Holds `count` sockets, each in a room of its own. When all clients have theirs, every second one talks."""

    def __init__(self, gate, token, address, count, together):
        super().__init__(daemon=True)
        self.gate, self.token, self.address, self.count, self.together = gate, token, address, count, together
        self.ends = []
        self.failure = None
        self.ready = threading.Event()

    def run(self):
        try:
            asyncio.run(self.main())
        except Exception as failure:
            self.failure = failure
            self.together.abort()
        self.ready.set()

    async def main(self):
        sockets = [await self.open(number) for number in range(self.count)]
        await asyncio.to_thread(self.together.wait, 60)
        talkers = sockets[::2]
        for socket in talkers:
            await socket.send(json.dumps({"say": "hello"}))
            assert json.loads(await socket.recv())["said"] == "hello"
        self.ready.set()
        await asyncio.gather(*(self.listen(socket, socket in talkers) for socket in sockets))

    async def open(self, number):
        socket = await open_async(
            f"ws://{HOST}/ws/chat/{self.address.rpartition('.')[2]}-{number}/",
            host="127.0.0.1", port=self.gate.port, local_addr=(self.address, 0),
            subprotocols=by_subprotocol(self.token)["subprotocols"], origin=PAGE, proxy=None, ping_interval=None,
        )  # fmt: skip
        await socket.recv()
        return socket

    async def listen(self, socket, talked):
        with pytest.raises(ConnectionClosed) as closed:
            while True:
                await socket.recv()
        told = closed.value.rcvd
        self.ends.append(End(time.time(), told.code if told else 1006, told.reason if told else "", talked))


class Pod:
    """The two containers of k8s/deployment.yaml, with `sockets` open; `hooks` are those that are left in it."""

    def __init__(self, logs, keycloak, hooks):
        spec = manifest("deployment.yaml")["spec"]["template"]["spec"]
        (sidecar,), (main,) = spec["initContainers"], spec["containers"]
        self.grace = spec["terminationGracePeriodSeconds"] * SCALE
        self.daphne = PodDaphne(logs, main["command"])
        self.gate = PodGate(logs, keycloak, self.daphne)
        ports = {8080: self.gate.port, 9091: self.gate.probes_port}
        for container in (sidecar, main):
            assert container["lifecycle"]["preStop"]
            if container["name"] not in hooks:
                del container["lifecycle"]
        self.main = Container("daphne", self.daphne, main, ports)
        self.sidecar = Container("sidegate", self.gate, sidecar, ports)

    def open(self, keycloak, sockets):
        """Many sockets, of several clients at several addresses."""
        tokens = [keycloak.login(user).access for user in ("alice", "bob")]
        together = threading.Barrier(4)
        self.clients = [
            Client(self.gate, token, f"127.0.0.{number}", sockets // 4, together)
            for number, token in zip(range(21, 25), cycle(tokens), strict=False)
        ]
        for client in self.clients:
            client.start()
        for client in self.clients:
            assert client.ready.wait(60) and client.failure is None, client.failure

    def end(self):
        """Kubelet begins; returns what waits for the end of that."""
        self.began = time.time()
        threads = end_pod([self.main, self.sidecar], self.grace, SCALE)

        def wait():
            for thread in threads:
                thread.join()
            for client in self.clients:
                client.join(10)
                assert client.failure is None and len(client.ends) == client.count
            return sorted((end for client in self.clients for end in client.ends), key=lambda end: end.at)

        return wait

    def request(self):
        """A handshake of a newcomer."""
        return connect(
            f"ws://{HOST}/ws/chat/newcomer/", sock=create_connection(("127.0.0.1", self.gate.port)), origin=PAGE,
            subprotocols=by_subprotocol(self.clients[0].token)["subprotocols"], proxy=None, ping_interval=None,
        )  # fmt: skip


@pytest.fixture
def start_pod(logs, keycloak):
    @contextmanager
    def start(sockets, hooks=("sidegate", "daphne")):
        pod = Pod(logs, keycloak, hooks)
        with pod.daphne, pod.gate:
            pod.open(keycloak, sockets)
            yield pod

    return start


def test_a_pod_goes_and_every_page_is_told_to_reconnect(start_pod):
    with start_pod(200) as pod:
        times = pod.gate.times()
        assert times["delay"] + times["deadline"] < pod.grace
        wait = pod.end()
        wait_until(lambda: pod.gate.probe("readyz") == 503, "not ready", times["delay"] / 2)
        # No load balancer has heard of it yet: who comes is served.
        with pod.request() as newcomer:
            seen_by(newcomer)
            talks(newcomer, "alice")
            assert time.time() - pod.began < times["delay"], "this machine is too slow for this test"
            assert not any(client.ends for client in pod.clients)

            began = pod.gate.moment("drain_started")
            time.sleep(max(0, began + times["delay"] + 0.2 - time.time()))
            with pytest.raises(InvalidStatus) as refused:
                pod.request().close()
            assert refused.value.response.status_code == 503
            assert json.loads(refused.value.response.body)["reason"] == "draining"
            assert pod.daphne.process.poll() is None, "Daphne is there until the last session has gone"
            assert end_of(newcomer) == (1012, "draining")
        ends = wait()

        assert Counter((end.code, end.reason) for end in ends) == {(1012, "draining"): 200}
        closing = began + times["delay"]
        assert closing <= ends[0].at and ends[-1].at < closing + times["spread"] + 0.5
        # The crowd comes back thinly: of all of them never more than a third in any tenth of the time.
        tenth = times["spread"] / 10
        crowds = [sum(end.at <= other.at < end.at + tenth for other in ends) for end in ends]
        assert max(crowds) <= 200 / 3
        # Those who had said nothing since they came went first.
        idle = [end.at for end in ends if not end.talked]
        talked = [end.at for end in ends if end.talked]
        assert len(idle) == len(talked) == 100
        assert max(idle) < min(talked) + tenth

        # Each hook did its part: the last session, then Daphne, then the gate; nothing was killed.
        assert (pod.sidecar.hook_failed, pod.main.hook_failed) == ("", "")
        assert ends[-1].at <= pod.main.hook_returned + 0.1 and pod.main.hook_returned <= pod.main.told < pod.sidecar.told
        assert pod.main.hook_returned < began + times["deadline"] and pod.sidecar.hook_returned <= pod.sidecar.told
        assert (pod.main.code, pod.sidecar.code) == (0, 0)
        assert pod.daphne.output().count(" with 1001\n") == 201, "Daphne heard each of them go"


@pytest.mark.parametrize("without", ["sidegate", "daphne"])
def test_without_one_of_the_hooks_daphne_goes_first_and_takes_all_sockets_along(start_pod, without):
    with start_pod(20, hooks={"sidegate", "daphne"} - {without}) as pod:
        ends = pod.end()()
        # All at once, from the middle of whatever they did, and as if something had failed.
        assert Counter((end.code, end.reason) for end in ends) == {(1013, "upstream_lost"): 20}
        assert pod.main.told <= ends[0].at and ends[-1].at - ends[0].at < 1
        if without == "daphne":
            assert pod.main.told - pod.began < 0.5, "nothing has held it back"
        else:
            # Its hook waits in vain for a drain that nobody has begun, and then there is no time for one.
            assert pod.main.told - pod.began >= pod.grace
            assert pod.sidecar.code == -signal.SIGKILL
