"""Daphne goes away and comes back."""

import json
import threading

from client import PAGE, end_of, open_socket, opens, refusal, seen_by
from parts import http

ROOM = "/ws/chat/outage/"


def test_without_daphne_a_refusal_says_so_and_once_it_is_back_all_is_well(gate, daphne, alice):
    with open_socket(gate, ROOM, alice.access) as socket:
        seen_by(socket)
        daphne.stop()
        try:
            # Daphne leaves without a Close; the client is told to come back.
            assert end_of(socket) == (1013, "upstream_lost")
            for origin in (None, PAGE):  # a browser too: over HTTP, so that it backs off
                refused = refusal(gate, ROOM, alice.access, origin=origin)
                assert (refused.status, refused.reason) == (502, "upstream_unreachable")
                assert str(daphne.port) not in refused.text + str(refused.headers)
                line = gate.line(event="handshake_refused", request_id=refused.request_id)
                assert (line["reason"], line["status"]) == ("upstream_unreachable", 502)
            answer = http.get(f"{gate.url}/api/echo/")
            assert (answer.status_code, answer.json()["reason"]) == (502, "upstream_unreachable")
            assert gate.probe("readyz").status_code == 200, "the backend is no matter of readiness"
        finally:
            daphne.start()
    assert opens(gate, ROOM, alice.access).identity["x-auth-username"] == "alice"
    assert http.get(f"{gate.url}/api/echo/").status_code == 200


def test_a_handshake_waits_for_a_daphne_that_is_restarting(start_gate, daphne, alice):
    with start_gate(connect_timeout="8s") as gate:
        daphne.stop()
        try:
            seen = []
            waiting = threading.Thread(target=lambda: seen.append(opens(gate, ROOM, alice.access)))
            waiting.start()
        finally:
            daphne.start()
        waiting.join(10)
        assert [one.identity["x-auth-username"] for one in seen] == ["alice"]


def test_what_a_client_says_to_a_lost_daphne_does_not_reach_the_next_one(gate, daphne, alice, bob):
    with open_socket(gate, ROOM, alice.access) as lost:
        seen_by(lost)
        daphne.stop()
        daphne.start()
        assert end_of(lost)[0] == 1013
    with open_socket(gate, ROOM, bob.access) as socket:
        seen_by(socket)
        socket.send(json.dumps({"say": "first"}))
        assert json.loads(socket.recv(timeout=5)) == {"by": "bob", "said": "first"}
