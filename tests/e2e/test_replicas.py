"""Two gates and one Redis: what one is told the other does, also where their clocks differ, and what becomes of it
when Redis or a gate is lost."""

import signal
import time
from contextlib import contextmanager, suppress
from datetime import UTC, datetime

import httpx
import pytest
from websockets.exceptions import ConnectionClosedError, InvalidStatus

from client import PAGE, by_header, end_of, opens, refusal, talks
from gate import closing_soon
from parts import Redis, http, wait_until
from sso import claims

REVOKED = (4001, "token_revoked")
TWO = "sessions_per_user = 2"
TTL = 600
# What is named, and how its sockets end. The issue time is in whole seconds: the next one has this login before it.
KINDS = {
    "jti": (lambda said: {"jti": said["jti"]}, REVOKED),
    "sid": (lambda said: {"sid": said["sid"]}, REVOKED),
    "sub": (lambda said: {"sub": said["sub"]}, (4003, "user_revoked")),
    "sub and issued_before": (
        lambda said: {"sub": said["sub"], "issued_before": datetime.fromtimestamp(said["iat"] + 1, UTC).isoformat()}, REVOKED,
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def start_pair(start_gate):
    """`with start_pair(redis, "name") as (a, b)`: two gates that share what is in Redis under this name. The clock of
    the second may be ahead."""

    @contextmanager
    def start(redis, name, *, ahead=0, limits="", blacklist=""):
        settings = {
            "leeway": "90s",
            "limits": f'attempts_per_address = "off"\n{limits}',
            "more": f'[blacklist]\nredis = {{ url = "redis://127.0.0.1:{redis.port}", prefix = "{name}:" }}\n{blacklist}',
        }
        with start_gate(**settings) as a, start_gate(ahead=ahead, **settings) as b:
            yield a, b

    return start


@pytest.fixture(scope="module", params=[0, 60], ids=["one clock", "a minute apart"])
def pair(request, start_pair, redis):
    with start_pair(redis, f"pair-{request.param}", ahead=request.param, limits="sessions_per_user = 3") as (a, b):
        assert clock(b) - clock(a) == pytest.approx(request.param, abs=10)
        yield a, b


@pytest.fixture(params=[0, 1], ids=["posted to the first", "posted to the second"])
def posted(request, pair):
    """The gate that is told, and the one that is not."""
    return pair[request.param], pair[1 - request.param]


def seconds(moment):
    return datetime.fromisoformat(moment).timestamp()


def clock(gate):
    """What it last wrote into its log."""
    return seconds(gate.lines()[-1]["time"])


@pytest.fixture
def revoke():
    """Revokes, and takes it back after the test."""
    done = []

    def post(gate, **selector):
        answer = gate.admin("POST", "/revocations", json=selector)
        assert answer.status_code == 201, answer.text
        done.append((gate, answer.json()["id"]))
        return answer.json()

    yield post
    for gate, revocation in done:
        with suppress(httpx.TransportError):  # a gate that was for this test alone has ended
            gate.admin("DELETE", f"/revocations/{revocation}")


def listed(gate, revocation):
    """How a gate itself lists it."""
    rows = gate.admin("GET", "/revocations").json()["revocations"]
    return next(row["revocation"] for row in rows if row["id"] == revocation)


@pytest.mark.parametrize("kind", KINDS)
def test_what_one_gate_is_told_closes_sockets_on_both(posted, keycloak, bob, sockets, revoke, room, kind):
    told, other = posted
    selector, end = KINDS[kind]
    tokens = keycloak.login("alice")
    said = claims(tokens.access)
    ours = {gate: sockets(gate, room, tokens) for gate in posted}
    bystanders = [sockets(gate, room, bob) for gate in posted]
    with closing_soon(told, other):
        answer = revoke(told, **selector(said), ttl=f"{TTL}s", reason=f"left {room}")
        assert [end_of(socket, timeout=5) for socket in ours.values()] == [end] * 2
    assert (answer["closed"], answer["scope"], answer["durable"]) == (1, "shared", True)
    for gate, by in ((told, "127.0.0.1"), (other, "redis")):
        audit = gate.line(event="revocation", note=f"left {room}")  # the id is that of whom it names
        assert (audit["id"], audit["by"], audit["closed"], audit["iss"]) == (answer["id"], by, 1, gate.issuer)
        closed = gate.line(event="session_closed", request_id=ours[gate].request_id)
        assert (closed["code"], closed["reason"], closed["sid"]) == (*end, said["sid"])
        assert gate.metric("websocket_closes_total", reason=end[1]) >= 1
        # Each by its own clock.
        row = listed(gate, answer["id"])
        assert row["expires_at"] == audit["expires_at"]
        assert seconds(row["expires_at"]) - time.time() - gate.ahead == pytest.approx(TTL, abs=5)
        assert refusal(gate, room, tokens.access).reason == end[1]
        plain = http.get(f"{gate.url}/api/me/", headers=by_header(tokens.access)["headers"])
        assert plain.json()["reason"] == end[1]
    for socket in bystanders:
        talks(socket, "bob")

    # Taken back at the other one.
    assert other.admin("DELETE", f"/revocations/{answer['id']}").status_code == 204
    assert told.line(event="revocation_withdrawn", id=answer["id"], by="redis")
    assert [opens(gate, room, tokens.access).identity["x-auth-username"] for gate in posted] == ["alice"] * 2


def test_a_revocation_holds_as_long_as_it_was_asked_for_on_both(pair, keycloak, revoke, room):
    logins = [keycloak.login("alice"), keycloak.login("alice")]
    began = time.monotonic()
    for gate, tokens in zip(pair, logins):
        revoke(gate, sid=claims(tokens.access)["sid"], ttl="3s")
    everywhere = [(gate, tokens) for gate in pair for tokens in logins]
    for gate, tokens in everywhere:
        wait_until(lambda: gate.lines(event="revocation", sid=claims(tokens.access)["sid"]), "it is told", 2)
        assert refusal(gate, room, tokens.access).reason == "token_revoked"
    assert time.monotonic() - began < 3, "this machine is too slow for this test"

    def has_ended(gate, tokens):
        answer = http.get(f"{gate.url}/api/me/", headers=by_header(tokens.access)["headers"])
        return answer.status_code == 200

    wait_until(lambda: all(has_ended(*one) for one in everywhere), "it holds no more", 10)
    assert 2.9 < time.monotonic() - began < 7


def test_a_gate_that_starts_later_knows_what_was_said_before(start_gate, redis, keycloak, revoke, room):
    more = f'[blacklist]\nredis = {{ url = "redis://127.0.0.1:{redis.port}", prefix = "later:" }}'
    token = keycloak.login("alice").access
    with start_gate(more=more) as gate:
        assert revoke(gate, jti=claims(token)["jti"])["durable"]
    with start_gate(more=more) as gate:  # nobody else is there
        assert refusal(gate, room, token).reason == "token_revoked"
        assert opens(gate, room, keycloak.login("alice").access)


def test_the_sockets_of_a_user_are_counted_over_both_gates(pair, keycloak, bob, sockets, revoke, room):
    a, b = pair
    laptop, phone = keycloak.login("alice"), keycloak.login("alice")
    first, second, third = sockets(a, room, laptop), sockets(b, room, phone), sockets(b, room, phone)
    for gate in pair:
        for tokens in (laptop, phone):
            over_http = refusal(gate, room, tokens.access)
            assert (over_http.status, over_http.reason) == (429, "user_sessions_exceeded")
        by_close = refusal(gate, room, laptop.access, origin=PAGE)
        assert (by_close.code, by_close.reason) == (4029, "user_sessions_exceeded")
        assert opens(gate, room, bob.access)

    def comes_in(gate):
        try:
            return sockets(gate, room, phone)
        except InvalidStatus as refused:
            assert refused.response.status_code == 429

    second.close()
    wait_until(lambda: comes_in(a), "a place that was left is free", 5)
    assert refusal(b, room, phone.access).reason == "user_sessions_exceeded"
    revoke(b, sid=claims(laptop.access)["sid"], ttl="60s")
    assert end_of(first) == REVOKED
    wait_until(lambda: comes_in(b), "a place that was taken away is free", 5)
    talks(third, "alice")
    assert refusal(a, room, phone.access).reason == "user_sessions_exceeded"
    assert [gate.metric("limit_alone_total") for gate in pair] == [0, 0]


def test_a_clock_that_is_set_while_the_gate_runs_is_noticed_with_the_next_news(start_pair, redis, keycloak, sockets, revoke, room, tmp_path):
    file = tmp_path / "ahead"
    file.write_text("+0s\n")
    with start_pair(redis, "set", ahead=file) as (a, b):
        for seconds in (60, 0):
            file.write_text(f"{seconds:+}s\n")
            tokens = keycloak.login("alice")
            socket = sockets(b, room, tokens)
            with closing_soon(b):
                revoke(a, sid=claims(tokens.access)["sid"], ttl="30s")
                assert end_of(socket, timeout=5) == (4001, "token_revoked")


@pytest.mark.parametrize(
    ("ahead", "order"),
    [(0, (0, 1, 0)), (0, (1, 0, 1)), (60, (0, 1, 0)), (60, (1, 0, 1))],
    ids=str,
)
def test_the_oldest_socket_of_a_user_makes_room_wherever_it_is(start_pair, redis, keycloak, sockets, room, ahead, order):
    limits = f'{TWO}\non_user_limit = "close_oldest"'
    tokens = keycloak.login("alice")
    with start_pair(redis, f"oldest-{ahead}-{order[0]}", ahead=ahead, limits=limits) as pair:
        oldest, older, newest = [sockets(pair[gate], room, tokens) for gate in order]
        assert end_of(oldest, timeout=3) == (4029, "user_sessions_exceeded")
        talks(older, "alice"), talks(newest, "alice")


def freeze(redis):
    redis.signal(signal.SIGSTOP)


def thaw(redis):
    redis.signal(signal.SIGCONT)


@pytest.mark.parametrize(("lose", "find"), [(Redis.stop, Redis.start), (freeze, thaw)], ids=["stopped", "frozen"])
def test_without_redis_sockets_live_on_and_when_it_is_back_all_is_told(
    start_pair, logs, keycloak, bob, sockets, revoke, room, lose, find
):
    alice, again = keycloak.login("alice"), keycloak.login("alice")
    sid = claims(alice.access)["sid"]
    with Redis(logs) as redis, start_pair(redis, "lost", limits=TWO, blacklist='stale_after = "2s"') as pair:
        a, b = pair
        here, there, stays = sockets(a, room, alice), sockets(b, room, alice), sockets(b, room, bob)
        known = keycloak.login("alice")
        revoke(a, jti=claims(known.access)["jti"])
        b.line(event="revocation", by="redis")
        lose(redis)
        try:
            for gate in pair:
                answer = wait_until(lambda: (said := gate.probe("readyz")).status_code == 503 and said, "out of touch", 10)
                (missing,) = answer.json()["missing"]
                assert "[blacklist] redis" in missing
                new = refusal(gate, room, bob.access)
                assert (new.status, new.reason) == (503, "blacklist_unavailable")
                assert opens(gate, "/ws/public/lobby/")
            for socket in (here, there):
                talks(socket, "alice")
            talks(stays, "bob")
            answer = revoke(a, sid=sid)
            assert (answer["closed"], answer["scope"], answer["durable"]) == (1, "replica", False)
            assert end_of(here) == REVOKED
            assert sid in a.line(event="revocation_not_shared")["message"]
            talks(there, "alice")
        finally:
            find(redis)
        assert end_of(there, timeout=20) == REVOKED
        for gate in pair:
            wait_until(lambda: gate.probe("readyz").status_code == 200, "in touch again", 10)
            for tokens in (alice, known):
                assert refusal(gate, room, tokens.access).reason == "token_revoked"
            assert opens(gate, room, again.access)
        talks(stays, "bob")
        sockets(a, room, bob)
        for gate in pair:
            assert refusal(gate, room, bob.access).reason == "user_sessions_exceeded"
        last = revoke(b, sid=claims(bob.access)["sid"], ttl="60s")
        assert (last["closed"], last["scope"], last["durable"]) == (1, "shared", True)
        assert end_of(stays) == REVOKED
        a.line(event="revocation", id=last["id"])


def test_the_places_of_a_gate_that_was_killed_come_back_within_half_a_minute(start_pair, redis, keycloak, bob, sockets, room):
    tokens = keycloak.login("alice")
    with start_pair(redis, "killed", limits=TWO) as (a, b):
        stays, lost = sockets(a, room, tokens), sockets(b, room, tokens)
        assert refusal(a, room, tokens.access).reason == "user_sessions_exceeded"
        b.kill()
        killed = time.monotonic()
        with pytest.raises(ConnectionClosedError):
            lost.recv(timeout=5)
        assert refusal(a, room, tokens.access).reason == "user_sessions_exceeded"

        def comes_in():
            try:
                return sockets(a, room, tokens)
            except InvalidStatus as refused:
                assert refused.response.status_code == 429

        second = wait_until(comes_in, "the place is free", 40)
        assert time.monotonic() - killed < 32
        assert refusal(a, room, tokens.access).reason == "user_sessions_exceeded", "one place, not two"
        for socket in (stays, second):
            talks(socket, "alice")
