"""Keycloak goes away and comes back, with other keys than before: its database is in memory."""

import json

import pytest

from client import PAGE, open_socket, opens, refusal, seen_by
from parts import wait_until

ROOM = "/ws/chat/outage/"


@pytest.fixture(scope="module")
def unseen(keycloak, alice):
    """A valid token that no gate has seen when Keycloak stops."""
    return keycloak.renew(alice).access


@pytest.fixture(scope="module")
def without_keycloak(keycloak, gate, alice, unseen):
    """Stopped for this module, unless a test starts it: each start takes many seconds of CPU."""
    opens(gate, ROOM, alice.access)
    keycloak.stop()
    yield
    if keycloak.process is None:
        keycloak.start()


def test_a_running_gate_serves_on_while_keycloak_is_stopped(gate, alice, unseen, without_keycloak):
    with open_socket(gate, ROOM, alice.access) as socket:
        seen_by(socket)
        socket.send(json.dumps({"say": "still here"}))
        assert json.loads(socket.recv(timeout=5))["said"] == "still here"
    # Another configuration of the same issuer still has its keys.
    gate.edit(('leeway = "1s"', 'leeway = "2s"'))
    assert opens(gate, ROOM, unseen).identity["x-auth-username"] == "alice"
    assert refusal(gate, ROOM, alice.id).reason == "token_type"
    assert gate.probe("readyz").status_code == 200


def test_a_gate_that_starts_without_keycloak_says_whom_it_misses_and_heals_by_itself(
    start_gate, gate, keycloak, alice, without_keycloak
):
    with start_gate(wait=False) as orphan:
        wait_until(lambda: orphan.probe("livez").status_code == 200, "the gate is alive")
        unready = orphan.probe("readyz")
        assert unready.status_code == 503
        assert orphan.issuer in unready.text
        for origin in (None, PAGE):  # a browser too: 503 makes it back off
            refused = refusal(orphan, ROOM, alice.access, origin=origin)
            assert (refused.status, refused.reason) == (503, "keys_unavailable")
            assert int(refused.headers["Retry-After"]) > 0

        keycloak.start()
        wait_until(lambda: orphan.probe("readyz").status_code == 200, "the gate has healed", 40)
        token = keycloak.login("alice").access
        assert opens(orphan, ROOM, token).identity["x-auth-username"] == "alice"
        # And the one that has run all the time meets a key that it has never heard of.
        assert opens(gate, ROOM, token).identity["x-auth-username"] == "alice"
