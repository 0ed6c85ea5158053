"""Limits: refused attempts and open sockets, per address and per user, also behind a real proxy."""

import time
from contextlib import ExitStack

import pytest
from websockets.exceptions import InvalidStatus

from client import PAGE, by_header, end_of, open_socket, opens, refusal, seen_by, talks
from parts import http, wait_until
from proxies import PROXIES
from sso import claims

ROOM = "/ws/chat/limits/"
WINDOW = 4


def at(address):
    """A client of this address: all of 127.0.0.0/8 is here."""
    return {"source_address": (address, 0)}


@pytest.fixture(scope="module")
def counting(start_gate):
    with start_gate(limits=f'attempts_per_address = "3/{WINDOW}s"', connect_timeout="100ms") as gate:
        yield gate


def test_an_address_that_is_refused_too_often_is_not_listened_to_for_a_while(counting, daphne, alice, room):
    gate, here = counting, at("127.0.0.11")
    with open_socket(gate, ROOM, alice.access, **here) as before:
        seen_by(before)
        began = time.monotonic()
        for origin in (None, PAGE, None):
            assert refusal(gate, room, alice.id, origin=origin, **here).reason == "token_type"
        # Over HTTP to a browser too, so that its page backs off; and a good token counts no more than a bad one.
        for token, origin in ((alice.id, None), (alice.access, None), (alice.access, PAGE), (None, PAGE)):
            refused = refusal(gate, room, token, origin=origin, **here)
            assert (refused.status, refused.reason) == (429, "attempts_exceeded")
            assert 0 < int(refused.headers["Retry-After"]) <= WINDOW + 1
        assert time.monotonic() - began < WINDOW, "this machine is too slow for this test"
        assert room not in daphne.output()
        line = gate.line(event="handshake_refused", request_id=refused.request_id)
        assert (line["reason"], line["status"], line["address"]) == ("attempts_exceeded", 429, "127.0.0.11")
        # Neither others nor who is on already have to do with it.
        assert opens(gate, ROOM, alice.access, **at("127.0.0.12"))
        talks(before, "alice")
        assert gate.admin("GET", "/limits").json()["held"]["tracked_addresses"] >= 1

        def again():
            try:
                return opens(gate, ROOM, alice.access, **here)
            except InvalidStatus:
                return None

        wait_until(again, "the address is heard again, and its attempts meanwhile did not count", WINDOW * 9 / 8 + 2)
        assert time.monotonic() - began >= WINDOW


def test_good_tokens_and_failures_of_the_backend_are_no_attempts(counting, daphne, alice):
    here = at("127.0.0.13")
    for _ in range(6):
        opens(counting, ROOM, alice.access, **here)
    daphne.stop()
    try:
        for _ in range(4):
            assert refusal(counting, ROOM, alice.access, **here).reason == "upstream_unreachable"
    finally:
        daphne.start()
    assert opens(counting, ROOM, alice.access, **here)


def test_refused_requests_over_plain_http_count_as_well(counting, alice):
    bad = by_header(alice.id)["headers"]
    statuses = [http.get(f"{counting.url}/api/me/", headers=bad).status_code for _ in range(4)]
    assert statuses == [401, 401, 401, 429]
    answer = http.get(f"{counting.url}/api/me/", headers=by_header(alice.access)["headers"])
    assert (answer.status_code, answer.json()["reason"]) == (429, "attempts_exceeded")
    assert int(answer.headers["Retry-After"]) > 0


def test_the_oldest_socket_of_a_user_makes_room_for_a_new_one(start_gate, keycloak, daphne, alice, bob, room):
    limits = 'attempts_per_address = "off"\nsessions_per_user = 2\non_user_limit = "close_oldest"'
    phone = keycloak.login("alice")
    assert claims(phone.access)["sid"] != claims(alice.access)["sid"]
    with start_gate(limits=limits) as gate, ExitStack() as sockets:
        oldest, older, bobs, newest = [
            sockets.enter_context(open_socket(gate, path, token))
            for path, token in ((room, alice.access), (ROOM, phone.access), (ROOM, bob.access), (ROOM, phone.access))
        ]
        for socket in (oldest, older, bobs, newest):
            seen_by(socket)
        assert end_of(oldest) == (4029, "user_sessions_exceeded")
        daphne.wait_until_left(room)
        for socket, user in ((older, "alice"), (bobs, "bob"), (newest, "alice")):
            talks(socket, user)
        line = gate.line(event="session_closed", request_id=oldest.request_id)
        assert (line["code"], line["reason"], line["username"]) == (4029, "user_sessions_exceeded", "alice")
        assert len(gate.sessions(sub=claims(alice.access)["sub"])) == 2
        # Nobody who is refused pushes anybody out.
        assert refusal(gate, ROOM, alice.access, origin="https://evil.example").reason == "origin_denied"
        talks(older, "alice")


def test_a_user_with_enough_sockets_is_refused_one_more_until_one_is_closed(start_gate, keycloak, alice, bob):
    with start_gate(limits='attempts_per_address = "1/60s"\nsessions_per_user = 2') as gate:
        with open_socket(gate, ROOM, alice.access) as one, open_socket(gate, ROOM, keycloak.login("alice").access) as two:
            seen_by(one), seen_by(two)
            for _ in range(2):  # not the client's fault, so no attempt
                over_http = refusal(gate, ROOM, alice.access)
                assert (over_http.status, over_http.reason) == (429, "user_sessions_exceeded")
            by_close = refusal(gate, ROOM, alice.access, origin=PAGE)
            assert (by_close.code, by_close.reason) == (4029, "user_sessions_exceeded")
            assert opens(gate, ROOM, bob.access)
            two.close()
            wait_until(lambda: len(gate.sessions()) == 1, "the place is free")
            assert opens(gate, ROOM, alice.access)
            talks(one, "alice")


def test_a_gate_that_is_full_sends_everybody_elsewhere(start_gate, alice, bob):
    with start_gate(limits='attempts_per_address = "off"\nsessions = 1') as gate:
        with open_socket(gate, ROOM, alice.access) as socket:
            seen_by(socket)
            for origin in (None, PAGE):
                full = refusal(gate, ROOM, bob.access, origin=origin)
                assert (full.status, full.reason) == (503, "sessions_full")
                assert int(full.headers["Retry-After"]) > 0
        wait_until(lambda: gate.sessions() == [], "the place is free")
        assert opens(gate, ROOM, bob.access)


PER_ADDRESS = 'attempts_per_address = "3/60s"\nsessions_per_address = 2'


@pytest.mark.parametrize("proxy", PROXIES, ids=lambda proxy: proxy.name)
def test_behind_a_trusted_proxy_each_client_has_its_own_limits(start_gate, logs, alice, bob, proxy):
    listen = 'trusted_proxies = ["127.0.0.1"]'
    with start_gate(listen=listen, limits=PER_ADDRESS) as gate, proxy(logs, gate) as proxy, ExitStack() as sockets:
        hers, his = at("127.0.0.21"), at("127.0.0.22")
        ours = [
            sockets.enter_context(open_socket(proxy, ROOM, token, **client))
            for token, client in ((alice.access, hers), (alice.access, hers), (bob.access, his))
        ]
        for socket, client in zip(ours, (hers, hers, his)):
            address = client["source_address"][0]
            seen = seen_by(socket)
            assert seen.all("x-forwarded-for") == seen.all("x-real-ip") == [address]
            assert gate.line(event="session_opened", request_id=socket.request_id)["address"] == address
        # What she says herself does not help her.
        third = refusal(proxy, ROOM, alice.access, headers=[("X-Forwarded-For", "198.51.100.7")], **hers)
        assert (third.status, third.reason) == (429, "address_sessions_exceeded")
        assert gate.line(event="handshake_refused", request_id=third.request_id)["address"] == "127.0.0.21"
        for socket, user in zip(ours, ("alice", "alice", "bob")):
            talks(socket, user)
        # Who guesses tokens locks out nobody but himself.
        for _ in range(3):
            refusal(proxy, ROOM, alice.id, **at("127.0.0.23"))
        assert refusal(proxy, ROOM, alice.access, **at("127.0.0.23")).reason == "attempts_exceeded"
        assert opens(proxy, ROOM, bob.access, **his)
        assert gate.metric("forwarded_ignored_total") == 0
        closed = gate.admin("DELETE", "/sessions", params={"address": "127.0.0.21"}).json()
        assert closed["closed"] == 2
        assert [end_of(socket) for socket in ours[:2]] == [(1012, "operator_closed")] * 2
        talks(ours[2], "bob")


@pytest.mark.parametrize("proxy", PROXIES, ids=lambda proxy: proxy.name)
def test_behind_a_proxy_that_is_not_trusted_all_clients_share(start_gate, logs, alice, bob, proxy):
    with start_gate(limits=PER_ADDRESS) as gate, proxy(logs, gate) as proxy:
        hers, his = at("127.0.0.21"), at("127.0.0.22")
        with open_socket(proxy, ROOM, alice.access, **hers) as one, open_socket(proxy, ROOM, bob.access, **his) as two:
            assert seen_by(one).all("x-forwarded-for") == seen_by(two).all("x-forwarded-for") == ["127.0.0.1"]
            third = refusal(proxy, ROOM, bob.access, **at("127.0.0.23"))
            assert (third.status, third.reason) == (429, "address_sessions_exceeded")
            # The operator can see why.
            assert gate.metric("forwarded_ignored_total") >= 3
            assert {row["address"] for row in gate.sessions()} == {"127.0.0.1"}
        for _ in range(3):
            refusal(proxy, ROOM, alice.id, **hers)
        assert refusal(proxy, ROOM, bob.access, **his).reason == "attempts_exceeded"
