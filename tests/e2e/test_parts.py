"""The parts without the gate: what the other tests prove is the gate's doing only if these hold."""

import hashlib
import json
import os

import pytest
from websockets.exceptions import InvalidStatus

from client import by_query, end_of, open_socket, opens, seen_by
from parts import http
from sso import claims, header

SPOOFED = [("X-Auth-Subject", "root"), ("X-Auth-Username", "root")]


def test_daphne_alone_believes_whatever_identity_a_client_claims(daphne, room):
    assert opens(daphne, room, headers=SPOOFED).identity == {"x-auth-subject": "root", "x-auth-username": "root"}


def test_daphne_alone_lets_everybody_into_every_room(daphne, room):
    with open_socket(daphne, room, subprotocols=["chat.v1"]) as socket:
        assert seen_by(socket)["path"] == room
        assert socket.subprotocol == "chat.v1"
        socket.send(json.dumps({"say": "hello"}))
        assert json.loads(socket.recv(timeout=5)) == {"by": "anonymous", "said": "hello"}
        socket.send(b"\x00\xff")
        assert socket.recv(timeout=5) == b"\x00\xff"
        socket.send(json.dumps({"close": 4321}))
        assert end_of(socket) == (4321, "")


def test_daphne_stores_and_returns_a_file_and_streams(daphne):
    body = os.urandom(3_000_000)
    stored = http.put(f"{daphne.url}/api/upload/", content=body).json()
    assert stored == {"size": len(body), "sha256": hashlib.sha256(body).hexdigest()}
    assert http.get(f"{daphne.url}/api/download/").content == body
    assert http.get(f"{daphne.url}/api/ticks/").text == "data: 0\n\ndata: 1\n\ndata: 2\n\n"


def test_uvicorn_alone_wants_a_token_in_the_query_and_believes_any(uvicorn):
    with pytest.raises(InvalidStatus) as refused:
        opens(uvicorn, "/ws/echo/")
    assert refused.value.response.status_code == 403
    with open_socket(uvicorn, "/ws/echo/", "anything", by_query) as socket:
        assert seen_by(socket)["tokens"] == ["anything"]
        socket.send("hello")
        assert socket.recv(timeout=5) == "hello"


def test_tokens_of_keycloak_are_what_these_tests_take_them_for(keycloak, alice, bob):
    said = claims(alice.access)
    assert (said["iss"], said["aud"], said["typ"], said["azp"]) == (keycloak.issuer("demo"), "chat", "Bearer", "chat")
    assert {"chat", "admin"} <= set(said["realm_access"]["roles"])
    assert said["organization"] == ["acme"]
    assert claims(bob.access)["organization"] == ["globex"]
    assert claims(alice.id)["typ"] == "ID"
    # Nothing but `typ` tells it from an access token: same key, same issuer, same audience.
    assert header(alice.id)["kid"] == header(alice.access)["kid"]
    assert claims(alice.id)["aud"] == "chat"
    assert header(alice.refresh)["alg"] == "HS512"
    assert claims(keycloak.login("alice", client="billing").access)["aud"] == "billing"
    short = claims(keycloak.login("alice", client="chat-short").access)
    assert short["exp"] - short["iat"] == 5
    assert claims(keycloak.renew(alice).access)["sid"] == said["sid"]


def test_a_key_added_to_a_realm_signs_at_once_and_a_removed_one_is_gone(keycloak):
    old = header(keycloak.login("mallory", realm="other").access)["kid"]
    keycloak.add_key("other")
    new = header(keycloak.login("mallory", realm="other").access)["kid"]
    assert new != old
    assert {old, new} <= {key["kid"] for key in keycloak.keys("other")}
    keycloak.remove_key("other", old)
    assert old not in {key["kid"] for key in keycloak.keys("other")}
