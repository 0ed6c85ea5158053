"""What an operator sees and does: shadow mode, a drain, the probes, Prometheus."""

import json
import signal
import time
from contextlib import ExitStack

import pytest

from client import PAGE, end_of, open_socket, opens, refusal, seen_by
from parts import http, wait_until

ROOM = "/ws/chat/operation/"


@pytest.mark.parametrize(
    ("path", "token", "reason"),
    [
        ("/ws/shadow/acme/", None, "token_missing"),
        ("/ws/shadow/acme/", "id", "token_type"),
        ("/ws/shadow/globex/", "access", "rule_denied"),
    ],
)
def test_a_shadow_route_refuses_nothing_and_tells_what_it_would_have(gate, alice, path, token, reason):
    token = token and getattr(alice, token)
    before = gate.metric("would_refuse_total", reason=reason)
    with open_socket(gate, path, token, origin=PAGE, headers=[("X-Auth-Subject", "root")]) as socket:
        seen = seen_by(socket)
        assert seen.identity.get("x-auth-subject") != "root", "spoofed names are removed in every mode"
        socket.send(json.dumps({"say": "let in"}))
        assert json.loads(socket.recv(timeout=5))["said"] == "let in"
    assert gate.line(event="session_opened", request_id=socket.request_id)["would_refuse"] == reason
    assert gate.metric("would_refuse_total", reason=reason) == before + 1
    assert not gate.lines(event="handshake_refused", request_id=socket.request_id)


def test_a_shadow_route_has_nothing_to_tell_of_what_it_would_let_in(gate, alice):
    with open_socket(gate, "/ws/shadow/acme/", alice.access) as socket:
        assert seen_by(socket).identity["x-auth-username"] == "alice"
    assert "would_refuse" not in gate.line(event="session_opened", request_id=socket.request_id)


def test_the_same_refusals_are_refusals_where_the_route_enforces(gate, alice):
    assert refusal(gate, "/ws/events/globex/", alice.access).reason == "rule_denied"


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_the_gate_tells_every_socket_and_exits_with_0(start_gate, alice, stop):
    with start_gate(delay="2s") as gate, ExitStack() as sockets:
        opened = [sockets.enter_context(open_socket(gate, path, alice.access)) for path in (ROOM, ROOM, "/ws/echo/")]
        for socket in opened:
            seen_by(socket)
        told = time.monotonic()
        gate.process.send_signal(stop)
        wait_until(lambda: gate.probe("readyz").status_code == 503, "not ready", 1)
        # Not ready, but for `delay` it serves: the load balancers have not heard yet.
        opened[2].send("still here")
        assert opened[2].recv(timeout=1) == "still here"
        assert opens(gate, ROOM, alice.access)
        assert [end_of(socket) for socket in opened] == [(1012, "draining")] * 3
        assert gate.process.wait(12) == 0
        assert 2 <= time.monotonic() - told < 12
    closed = gate.lines(event="session_closed", reason="draining")
    assert {line["request_id"] for line in closed} == {socket.request_id for socket in opened}


def test_a_drain_without_sockets_ends_at_once(start_gate):
    with start_gate() as gate:
        gate.process.send_signal(signal.SIGTERM)
        assert gate.process.wait(3) == 0


def test_drained_answers_only_once_the_drain_has_ended(start_gate, alice):
    with start_gate(delay="1s") as gate, open_socket(gate, ROOM, alice.access) as socket:
        seen_by(socket)
        gate.process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        assert gate.probe("drained").status_code == 200
        assert time.monotonic() - began > 0.8
        assert end_of(socket) == (1012, "draining")


def test_probes_need_no_token_and_the_public_listener_does_not_serve_them(gate):
    for name in ("livez", "readyz", "metrics"):
        assert gate.probe(name).status_code == 200
        # No route names these paths, so they are the backend's, which has none.
        public = http.get(f"{gate.url}/{name}")
        assert public.status_code == 404
        assert "sidegate" not in public.text


def test_prometheus_scrapes_the_probes(prometheus, gate, alice):
    def scraped():
        return [(t["health"], t["lastError"]) for t in prometheus.targets() if t["health"] != "unknown"]

    assert wait_until(scraped, "the first scrape", 30) == [("up", "")]
    with open_socket(gate, ROOM, alice.access) as socket:
        seen_by(socket)
        wait_until(lambda: prometheus.query("sidegate_websocket_active_connections") == [1], "a live socket", 10)
    wait_until(lambda: prometheus.query("sidegate_websocket_active_connections") == [0], "its end", 10)
    refused = 'sidegate_websocket_auth_failures_total{reason="token_missing"}'
    (before,) = prometheus.query(refused)
    refusal(gate, ROOM)
    wait_until(lambda: prometheus.query(refused) == [before + 1], "a refusal", 10)
    # Every reason has its series from the start: an alert on it must not wait for the first case.
    assert prometheus.query('sidegate_websocket_auth_failures_total{reason="keys_unavailable"}') == [0]
