"""Keycloak's keys change: no valid token is refused, and what is no longer published is no longer believed."""

import threading
import time

import pytest

from client import opens, refusal
from parts import wait_until
from sso import header

ROOM = "/ws/chat/keys/"


def kids(keycloak, realm):
    return {key["kid"] for key in keycloak.keys(realm)}


def test_the_first_es256_token_opens_a_socket_though_its_key_was_made_with_it(start_gate, keycloak):
    with start_gate() as gate:
        known = kids(keycloak, "demo")
        tokens = keycloak.login("alice", client="chat-es256")
        assert header(tokens.access)["alg"] == "ES256"
        assert header(tokens.access)["kid"] not in known
        assert opens(gate, ROOM, tokens.access).identity["x-auth-username"] == "alice"


class Traffic:
    """Threads that again and again get a new token and open a socket with it, until told to stop."""

    def __init__(self, gate, keycloak, threads=3):
        self.gate, self.keycloak = gate, keycloak
        self.opened, self.failures = [], []
        self.stopping = threading.Event()
        self.threads = [threading.Thread(target=self.run, args=[keycloak.login("mallory", realm="other")]) for _ in range(threads)]

    def run(self, tokens):
        while not self.stopping.is_set():
            try:
                tokens = self.keycloak.renew(tokens)
                opens(self.gate, ROOM, tokens.access)
                self.opened.append(header(tokens.access)["kid"])
            except Exception as failure:  # told by the test, with how many went well before
                self.failures.append(failure)

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.stopping.set()
        for thread in self.threads:
            thread.join(30)


def test_no_valid_token_is_refused_while_the_key_is_rotated_under_traffic(start_gate, keycloak):
    with start_gate(realm="other") as gate:
        with Traffic(gate, keycloak) as traffic:
            wait_until(lambda: len(traffic.opened) >= 20, "traffic before the rotation", 30)
            old = traffic.opened[-1]
            keycloak.add_key("other")
            before = len(traffic.opened)
            wait_until(lambda: len(traffic.opened) >= before + 60, "traffic after the rotation", 30)
        assert not traffic.failures, f"{len(traffic.failures)} failed, {len(traffic.opened)} did not: {traffic.failures[0]!r}"
        assert traffic.opened[0] == old != traffic.opened[-1]
        assert gate.metric("websocket_connections_total", status="auth_failed") == 0


def test_a_key_that_keycloak_no_longer_publishes_takes_its_tokens_with_it(start_gate, keycloak):
    token = keycloak.login("mallory", realm="other").access
    with start_gate(realm="other", refresh="1s") as gate:
        opens(gate, ROOM, token)
        keycloak.add_key("other")
        time.sleep(2.5)
        assert opens(gate, ROOM, token), "replaced, but still published"
        keycloak.remove_key("other", header(token)["kid"])
        time.sleep(2.5)
        assert refusal(gate, ROOM, token).reason == "token_key_unknown"
        assert opens(gate, ROOM, keycloak.login("mallory", realm="other").access)


@pytest.mark.parametrize("realm", ["demo", "other"])
def test_each_realm_is_believed_for_its_own_issuer_alone(start_gate, keycloak, realm):
    tokens = {"demo": keycloak.login("alice").access, "other": keycloak.login("mallory", realm="other").access}
    with start_gate(realm=realm) as gate:
        foreign = tokens.pop("other" if realm == "demo" else "demo")
        opens(gate, ROOM, tokens[realm])
        assert refusal(gate, ROOM, foreign).reason == "token_issuer"
