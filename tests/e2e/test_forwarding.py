"""What passes: messages, closes, plain requests, large bodies, streams, and a token translated."""

import hashlib
import json
import os
import time
from contextlib import suppress

import pytest
from websockets.exceptions import ConnectionClosed

from client import CARRIERS, PAGE, Seen, by_cookie, by_header, by_query, end_of, open_socket, opens, refusal, seen_by
from parts import http
from sso import encode

MIB = 1 << 20


def test_two_users_talk_in_a_room(gate, alice, bob, room):
    with open_socket(gate, room, alice.access) as one, open_socket(gate, room, bob.access) as other:
        seen_by(one), seen_by(other)
        one.send(json.dumps({"say": "Tjena, grabben! 👋"}))
        for socket in (one, other):
            assert json.loads(socket.recv(timeout=5)) == {"by": "alice", "said": "Tjena, grabben! 👋"}


def test_messages_pass_unchanged_and_in_order(gate, alice, room):
    sizes = [1, 125, 126, 65_535, 65_536, 500_000]
    messages = [os.urandom(size) for size in sizes]
    with open_socket(gate, room, alice.access) as socket:
        seen_by(socket)
        for message in messages:
            socket.send(message)
        assert [socket.recv(timeout=10) for _ in messages] == messages
        socket.send([b"in ", b"three ", b"fragments"])
        assert socket.recv(timeout=5) == b"in three fragments"
        assert socket.ping().wait(timeout=5)
    line = gate.line(event="session_closed", request_id=socket.request_id)
    assert (line["received_messages"], line["reason"]) == (len(messages) + 1, "client_closed")


def test_a_message_beyond_the_limit_for_daphne_is_cut_off(gate, alice, room):
    with open_socket(gate, room, alice.access) as socket:
        seen_by(socket)
        with suppress(ConnectionClosed):  # the Close may come while we are still sending
            socket.send(bytes(MIB + 1))
        assert end_of(socket) == (1009, "message_too_big")


def test_close_codes_pass_in_both_directions(gate, daphne, alice, room):
    with open_socket(gate, room, alice.access) as socket:
        seen_by(socket)
        socket.send(json.dumps({"close": 4321}))
        assert end_of(socket) == (4321, "")
    with open_socket(gate, room, alice.access) as socket:
        seen_by(socket)
        socket.close(4999, "bye")
    daphne.wait_until_left(room, 4999)


@pytest.mark.parametrize("authorization", ["Bearer opaque-key-of-the-api", "Basic YTpi", "Bearer a.b.c"])
def test_a_rest_call_with_its_own_authorization_passes_untouched(gate, authorization):
    answer = http.post(
        f"{gate.url}/api/echo/?token=its-own&a=%20b", headers={"Authorization": authorization, "X-Custom": "kept"}, content=b"x"
    )
    seen = Seen(answer.json())
    assert (answer.status_code, seen["method"], seen["query"]) == (200, "POST", "token=its-own&a=%20b")
    assert seen.all("authorization") == [authorization]
    assert seen.all("x-custom") == ["kept"]


def test_a_rest_api_that_checks_the_token_itself_still_gets_it(gate, alice):
    seen = Seen(http.get(f"{gate.url}/api/me/", headers=by_header(alice.access)["headers"]).json())
    assert seen.all("authorization") == [f"Bearer {alice.access}"]


def test_an_answer_of_the_backend_passes_with_its_status_and_words(gate):
    answer = http.get(f"{gate.url}/api/teapot/")
    assert (answer.status_code, answer.text) == (418, "the backend's own words")


def test_a_large_body_passes_both_ways_in_constant_memory(gate):
    chunk, count = os.urandom(MIB), 64
    before = gate.peak_memory()
    digest = hashlib.sha256()

    def body():
        for number in range(count):
            piece = number.to_bytes(8) + chunk
            digest.update(piece)
            yield piece

    stored = http.put(f"{gate.url}/api/upload/", content=body(), timeout=60).json()
    assert stored == {"size": count * (MIB + 8), "sha256": digest.hexdigest()}
    returned = hashlib.sha256()
    with http.stream("GET", f"{gate.url}/api/download/", timeout=60) as answer:
        for piece in answer.iter_bytes():
            returned.update(piece)
    assert returned.digest() == digest.digest()
    assert gate.peak_memory() - before < 16 * MIB


def test_a_stream_arrives_as_it_is_written(gate):
    arrivals = []
    with http.stream("GET", f"{gate.url}/api/ticks/") as answer:
        for piece in answer.iter_text():
            arrivals.append((piece, time.monotonic()))
    assert "".join(piece for piece, _ in arrivals) == "data: 0\n\ndata: 1\n\ndata: 2\n\n"
    assert arrivals[-1][1] - arrivals[0][1] > 0.8


@pytest.mark.parametrize("by", CARRIERS)
def test_fastapi_gets_the_token_once_and_only_in_its_query(gate, alice, by):
    seen = opens(gate, "/ws/echo/", alice.access, by, query="a=1&b=%2F")
    assert seen["tokens"] == [alice.access]
    parameters = seen["query"].split("&")
    assert sorted(parameters) == sorted(["a=1", "b=%2F", f"token={alice.access}"])
    elsewhere = json.dumps([seen["headers"], seen["subprotocols"]])
    assert alice.access not in elsewhere
    assert encode(alice.access.encode()) not in elsewhere


def test_fastapi_gets_the_verified_token_not_one_that_came_along(gate, alice):
    cookie = by_cookie("eyJhbGciOiJub25lIn0.e30.e30")["headers"]
    assert opens(gate, "/ws/echo/", alice.access, by_header, headers=cookie, origin=PAGE)["tokens"] == [alice.access]
    twice = refusal(gate, "/ws/echo/", alice.access, by_query, query="token=eyJhbGciOiJub25lIn0.e30.e30")
    assert (twice.status, twice.reason) == (400, "token_ambiguous")
    spelled = refusal(gate, "/ws/echo/", alice.access, by_header, query="tok%65n=x")
    assert (spelled.status, spelled.reason) == (400, "request_malformed")


def test_fastapi_and_a_client_may_compress_through_the_gate(gate, alice):
    with open_socket(gate, "/ws/echo/", alice.access, compression="deflate") as socket:
        seen_by(socket)
        assert "permessage-deflate" in socket.response.headers["Sec-WebSocket-Extensions"]
        text = "the same again and again " * 10_000
        socket.send(text)
        assert socket.recv(timeout=5) == text
    line = gate.line(event="session_closed", request_id=socket.request_id)
    assert line["received_bytes"] < len(text) / 10
