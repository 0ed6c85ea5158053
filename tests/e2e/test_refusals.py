"""Bad tokens: each is told by its label in the answer or the Close, in the log and in a metric, and the
backend never hears of it."""

import json
import time

import pytest

from client import CARRIERS, PAGE, by_header, end_of, open_socket, opens, refusal, seen_by
from gate import tokens_in
from parts import http
from sso import claims, decode, encode, header, wait_until_expired, with_claims


@pytest.fixture(scope="module", autouse=True)
def short_lived(keycloak):
    """Taken before all else here, so that it has expired by the time it is needed."""
    return keycloak.login("alice", client="chat-short").access


def expired(keycloak, alice, short_lived):
    wait_until_expired(short_lived)
    return short_lived


def with_header(token, **changes):
    _, payload, signature = token.split(".")
    return f"{encode(json.dumps(header(token) | changes).encode())}.{payload}.{signature}"


def with_broken_signature(token):
    signed, _, signature = token.rpartition(".")
    broken = bytearray(decode(signature))
    broken[100] ^= 1
    return f"{signed}.{encode(broken)}"


BAD = {
    "no token": ("token_missing", lambda keycloak, alice, _: None),
    "half a token": ("token_malformed", lambda keycloak, alice, _: alice.access.rpartition(".")[0]),
    "a refresh token": ("token_algorithm", lambda keycloak, alice, _: alice.refresh),
    "an offline token": ("token_algorithm", lambda keycloak, *_: keycloak.login("alice", scope="offline_access").refresh),
    "an unsigned token": ("token_algorithm", lambda keycloak, alice, _: with_header(alice.access, alg="none")),
    "an ID token": ("token_type", lambda keycloak, alice, _: alice.id),
    "a token with other claims": ("token_signature", lambda keycloak, alice, _: with_claims(alice.access, sub="root")),
    "a token with a broken signature": ("token_signature", lambda keycloak, alice, _: with_broken_signature(alice.access)),
    "a token by an unpublished key": ("token_key_unknown", lambda keycloak, alice, _: with_header(alice.access, kid="unknown")),
    "a token of another realm": ("token_issuer", lambda keycloak, *_: keycloak.login("mallory", realm="other").access),
    "a token for another audience": ("token_audience", lambda keycloak, *_: keycloak.login("alice", client="billing").access),
    "an expired token": ("token_expired", expired),
}


@pytest.fixture(params=BAD)
def bad(request, keycloak, alice, short_lived):
    """A label, and a token that must be refused with it."""
    label, make = BAD[request.param]
    token = make(keycloak, alice, short_lived)
    if token:
        keycloak.issued.append(token)
    return label, token


class Counted:
    """What a block of code adds to the metrics of refusals."""

    def __init__(self, gate, label):
        self.gate, self.label = gate, label

    def values(self):
        return (
            self.gate.metric("websocket_auth_failures_total", reason=self.label),
            self.gate.metric("websocket_connections_total", status="auth_failed"),
            self.gate.metric("websocket_connections_total", status="accepted"),
        )

    def __enter__(self):
        self.before = self.values()

    def __exit__(self, failure, *_):
        if failure is None:
            assert [after - before for after, before in zip(self.values(), self.before, strict=True)] == [1, 1, 0]


def test_a_bad_token_of_no_browser_is_told_over_http(gate, daphne, room, bad):
    label, token = bad
    with Counted(gate, label):
        refused = refusal(gate, room, token)
    assert (refused.status, refused.reason) == (401, label)
    challenge = refused.headers["WWW-Authenticate"]
    assert challenge.startswith("Bearer")
    assert ('error="invalid_token"' in challenge) == (label != "token_missing")
    line = gate.line(event="handshake_refused", request_id=refused.request_id)
    assert (line["reason"], line["status"], line["address"]) == (label, 401, "127.0.0.1")
    assert line["route"] == "/ws/chat/{room}/"
    assert room not in daphne.output()


def test_a_bad_token_of_a_browser_is_told_by_a_close_that_it_can_read(gate, daphne, room, bad):
    label, token = bad
    with Counted(gate, label):
        refused = refusal(gate, room, token, origin=PAGE)
    assert (refused.code, refused.reason) == (4001, label)
    line = gate.line(event="handshake_refused", request_id=refused.request_id)
    assert (line["reason"], line["code"], line["origin"]) == (label, 4001, PAGE)
    assert room not in daphne.output()


def test_a_bad_token_of_a_plain_request_is_told_alike_where_one_is_required(gate, bad):
    label, token = bad
    answer = http.get(f"{gate.url}/api/me/", headers=by_header(token)["headers"] if token else [])
    assert (answer.status_code, answer.json()["reason"]) == (401, label)
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.headers["WWW-Authenticate"].startswith("Bearer")


@pytest.mark.parametrize("by", CARRIERS)
def test_a_bad_token_is_found_in_each_carrier(gate, room, alice, by):
    assert refusal(gate, room, alice.id, by).reason == "token_type"


def test_a_refused_browser_that_offered_subprotocols_gets_one_selected(gate, room, alice):
    # Else it fails the handshake, and reads 1006 in place of our code.
    for offered, selected in [(["Bearer", alice.id], "Bearer"), (["chat.v1"], "chat.v1")]:
        with open_socket(gate, room, subprotocols=offered, origin=PAGE) as socket:
            assert socket.subprotocol == selected
            assert end_of(socket)[0] == 4001


def test_a_token_that_expires_closes_its_open_socket(gate, daphne, keycloak, room):
    token = keycloak.login("bob", client="chat-short").access
    before = gate.metric("websocket_closes_total", reason="token_expired")
    with open_socket(gate, room, token) as socket:
        seen_by(socket)
        socket.send(json.dumps({"say": "still here"}))
        assert end_of(socket) == (4001, "token_expired")
    leeway = 1
    late = time.time() - claims(token)["exp"] - leeway
    assert -0.1 < late < 2, f"closed {late:.1f} s after the end of the token"
    line = gate.line(event="session_closed", request_id=socket.request_id)
    assert (line["reason"], line["code"], line["username"]) == ("token_expired", 4001, "bob")
    assert gate.metric("websocket_closes_total", reason="token_expired") == before + 1
    daphne.wait_until_left(room)
    assert refusal(gate, room, token).reason == "token_expired"


@pytest.mark.parametrize("by", CARRIERS)
def test_no_answer_and_no_log_has_a_piece_of_a_token(gate, daphne, keycloak, alice, room, by):
    with open_socket(gate, room, alice.access, by, query="lang=sv") as opened:
        seen_by(opened)
    answer = refusal(gate, room, alice.id, by)
    assert gate.line(event="session_closed", request_id=opened.request_id)
    assert gate.line(event="handshake_refused", request_id=answer.request_id)
    texts = [gate.output(), daphne.output(), gate.probe("metrics").text, answer.text, str(answer.headers)]
    assert [found for text in texts for found in tokens_in(text, keycloak)] == []


def test_the_query_is_logged_with_three_stars_for_the_token(gate, alice, room):
    with open_socket(gate, room, query=f"a=1&token={alice.access}&b=2") as socket:
        seen_by(socket)
    assert "?a=1&token=***&b=2" in json.dumps(gate.line(event="session_opened", request_id=socket.request_id))


def test_after_all_this_a_good_token_is_as_good_as_before(gate, alice, room):
    assert opens(gate, room, alice.access).identity["x-auth-username"] == "alice"
