"""examples/case-review: the scenarios of its SCENARIOS.md, each by its number, its dashboard and its alerts."""

import base64
import itertools
import json
import os
import re
import shutil
import signal
import socket
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import pytest
import redis
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

import dashboard
from client import by_header, end_of, open_socket, refusal, talks
from parts import http, skip, wait_until
from sso import claims, encode, with_claims

SWEEP = 5
LEEWAY = 10
TEXT, CLOSE, PING = 1, 8, 9
ALERTS = ["WebSocketHighFailureRate", "WebSocketHighLatency", "WebSocketNoConnections"]
addresses = (f"127.0.{block}.{host}" for block, host in itertools.product(range(1, 255), range(1, 255)))


@pytest.fixture(scope="module")
def review(start_example):
    if not shutil.which("redis-server"):
        skip("no redis-server (Debian: redis-server)")
    with start_example("case-review") as review:
        yield review


@pytest.fixture(scope="module")
def alice(review):
    return review.login("alice")


@pytest.fixture
def store(review):
    with redis.Redis(port=review.redis.port) as store:
        yield store


@pytest.fixture
def case():
    """A case that nobody else has, so that its name in a log is this test's."""
    return f"/ws/cases/{uuid.uuid4().hex}"


def somewhere():
    """A client with an address of its own: attempts are counted by address."""
    return {"source_address": (next(addresses), 0)}


@pytest.fixture
def here():
    return somewhere()


@pytest.fixture(scope="module")
def sign(review, alice, keycloak):
    """Signs Alice's claims, changed, by a key that the realm publishes; Keycloak itself issues nothing so wrong."""
    key = rsa.generate_private_key(65537, 2048)
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    known = {key["kid"] for key in keycloak.keys(review.name)}
    config = {"privateKey": [pem.decode()], "priority": ["1"], "algorithm": ["RS256"]}
    provider = {"name": "brought", "providerId": "rsa", "providerType": "org.keycloak.keys.KeyProvider", "config": config}
    realm = keycloak.admin("GET", f"/realms/{review.name}").json()["id"]
    keycloak.admin("POST", f"/realms/{review.name}/components", json=provider | {"parentId": realm})
    (kid,) = {key["kid"] for key in keycloak.keys(review.name)} - known

    def sign(kid=kid, **changes):
        head = {"alg": "RS256", "typ": "JWT", "kid": kid}
        signed = ".".join(encode(json.dumps(part).encode()) for part in (head, claims(alice.access) | changes))
        token = f"{signed}.{encode(key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256()))}"
        keycloak.issued.append(token)
        return token

    return sign


@contextmanager
def joined(review, case, token, here, **options):
    """A reviewer's socket, after its welcome."""
    with open_socket(review.gate, case, token, **here, **options) as socket:
        assert json.loads(socket.recv(timeout=10))["case"] == case.rpartition("/")[2]
        yield socket


def is_refused(review, case, token, reason, here):
    """Over HTTP, and to a page by a Close that it can read; the backend never hears of it, and it is counted."""
    before = review.gate.metric("websocket_auth_failures_total", reason=reason)
    over_http = refusal(review.gate, case, token, **here)
    assert (over_http.status, over_http.reason) == (401, reason)
    by_close = refusal(review.gate, case, token, origin=review.url, **here)
    assert (by_close.code, by_close.reason) == (4001, reason)
    assert review.gate.metric("websocket_auth_failures_total", reason=reason) == before + 2
    assert case not in review.backend.output()


def log_out(review, token):
    answer = http.post(f"{review.url}/auth/logout", headers=by_header(token)["headers"])
    assert answer.status_code == 204, answer.text


def test_01_a_valid_token_is_let_in_and_the_backend_is_told_who_it_is(review, alice, case, here):
    with open_socket(review.gate, case, alice.access, **here) as socket:
        assert json.loads(socket.recv(timeout=10)) == {"case": case.rpartition("/")[2], "reviewer": "alice"}
        talks(socket, "alice")


def test_02_no_token(review, case, here):
    is_refused(review, case, None, "token_missing", here)


def test_03_no_token_at_all_but_something(review, alice, case, here):
    is_refused(review, case, "something", "token_malformed", here)
    is_refused(review, case, alice.access.rpartition(".")[0], "token_malformed", here)


def test_04_an_expired_token_and_one_that_expires(review, sign, case, here):
    now = int(time.time())
    is_refused(review, case, sign(exp=now - LEEWAY - 1), "token_expired", here)
    with joined(review, case, sign(exp=now - LEEWAY + 4), here) as socket:
        assert end_of(socket) == (4001, "token_expired")


def test_05_a_token_of_tomorrow(review, sign, case, here):
    is_refused(review, case, sign(nbf=int(time.time()) + 86400), "token_not_yet_valid", here)


def test_06_other_claims_under_an_old_signature(review, alice, case, here):
    is_refused(review, case, with_claims(alice.access, preferred_username="root"), "token_signature", here)


def test_07_a_token_of_another_realm(review, keycloak, case, here):
    is_refused(review, case, keycloak.login("mallory", realm="other").access, "token_issuer", here)


def test_08_a_token_for_another_service(review, case, here):
    token = review.login("alice", client="archive").access
    assert "archive" in claims(token)["aud"]
    is_refused(review, case, token, "token_audience", here)


def test_09_a_refresh_token_also_if_it_had_the_signature_of_an_access_token(review, alice, sign, case, here):
    assert claims(alice.refresh)["typ"] == "Refresh"
    is_refused(review, case, alice.refresh, "token_algorithm", here)
    is_refused(review, case, sign(typ="Refresh"), "token_type", here)


def test_10_an_id_token(review, alice, case, here):
    assert claims(alice.id)["aud"] == "case-review"
    is_refused(review, case, alice.id, "token_type", here)


def test_11_a_token_that_another_client_got(review, case, here):
    token = review.login("alice", client="reports").access
    assert "case-review" in claims(token)["aud"]
    is_refused(review, case, token, "token_client", here)


def test_12_a_token_after_its_logout(review, store, case, here):
    token = review.login("bob").access
    assert http.post(f"{review.url}/auth/logout").status_code == 401
    log_out(review, token)
    assert store.get(f"blacklist:{token}") == b"1" and store.ttl(f"blacklist:{token}") > 0, "the backend has written it"
    is_refused(review, case, token, "token_revoked", here)
    with joined(review, case, review.login("bob").access, here) as socket:
        talks(socket, "bob")


def test_13_an_open_socket_after_the_logout_of_its_token(review, case, here):
    token, other = review.login("bob").access, review.login("bob").access
    with joined(review, case, token, here) as socket, joined(review, case, other, here) as stays:
        log_out(review, token)
        began = time.monotonic()
        assert end_of(socket, timeout=SWEEP + 5) == (4001, "token_revoked")
        assert time.monotonic() - began < SWEEP + 2
        talks(stays, "bob")
    line = review.gate.line(event="session_closed", request_id=socket.request_id)
    assert (line["reason"], line["username"]) == ("token_revoked", "bob")


def test_14_without_redis_nobody_new_comes_in_and_who_is_on_stays(review, alice, case):
    with joined(review, case, alice.access, somewhere()) as socket:
        review.redis.stop()
        try:
            for page in (None, review.url):
                refused = refusal(review.gate, case, alice.access, origin=page, **somewhere())
                assert (refused.status, refused.reason) == (503, "blacklist_unavailable")
                assert int(refused.headers["Retry-After"]) > 0
            wait_until(lambda: review.gate.probe("readyz").status_code == 503, "the gate is not ready", 20)
            talks(socket, "alice")
        finally:
            review.redis.start()
        wait_until(lambda: review.gate.probe("readyz").status_code == 200, "the gate is ready again", 20)
    with joined(review, case, alice.access, somewhere()) as socket:
        talks(socket, "alice")


def test_15_the_sixth_socket_of_a_user(review, keycloak, alice, case, here):
    bob = review.login("bob").access
    with ExitStack() as opened:
        first, *_ = [opened.enter_context(joined(review, case, alice.access, here)) for _ in range(5)]
        sixth = refusal(review.gate, case, keycloak.renew(alice).access, **here)
        assert (sixth.status, sixth.reason) == (429, "user_sessions_exceeded")
        sixth = refusal(review.gate, case, alice.access, origin=review.url, **here)
        assert (sixth.code, sixth.reason) == (4029, "user_sessions_exceeded")
        with joined(review, case, bob, here):
            pass
        first.close()
        wait_until(lambda: review.gate.metric("websocket_active_connections") == 4, "the place is free")
        with joined(review, case, alice.access, here) as again:
            talks(again, "alice")


def test_16_the_21st_attempt_of_an_address(review, alice, case, here):
    told = [refusal(review.gate, case, None, **here) for _ in range(20)]
    assert {refused.reason for refused in told} == {"token_missing"}
    for token, page in ((None, None), (alice.access, None), (alice.access, review.url)):
        refused = refusal(review.gate, case, token, origin=page, **here)
        assert (refused.status, refused.reason) == (429, "attempts_exceeded")
        assert 0 < int(refused.headers["Retry-After"]) <= 61
    line = review.gate.line(event="handshake_refused", request_id=refused.request_id)
    assert line["address"] == here["source_address"][0]
    with joined(review, case, alice.access, somewhere()) as socket:
        talks(socket, "alice")


@pytest.fixture
def impatient(review):
    """The gate with a heartbeat of seconds in the place of half a minute."""
    usual, hasty = ('interval = "30s"', 'timeout = "5s"'), ('interval = "1s"', 'timeout = "500ms"')
    review.gate.edit(*zip(usual, hasty))
    yield review.gate
    review.gate.edit(*zip(hasty, usual))


def frames_without_an_answer(gate, case, token):
    """What a client hears that answers no ping: opcodes and payloads, up to the Close."""
    head = [
        f"GET {case} HTTP/1.1", "Host: 127.0.0.1", "Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}", f"Authorization: Bearer {token}",
    ]  # fmt: skip
    with socket.create_connection(("127.0.0.1", gate.port), timeout=20) as raw:
        raw.sendall("\r\n".join([*head, "", ""]).encode())
        stream = raw.makefile("rb")
        assert stream.readline().startswith(b"HTTP/1.1 101 ")
        while stream.readline() != b"\r\n":
            pass
        opcode = None
        while opcode != CLOSE:
            first, length = stream.read(2)
            opcode = first & 15
            yield opcode, stream.read(length)


def test_17_a_client_that_answers_no_ping(impatient, alice, case):
    before = impatient.metric("websocket_missed_pongs_total")
    heard = list(frames_without_an_answer(impatient, case, alice.access))
    assert [opcode for opcode, _ in heard] == [TEXT, PING, PING, PING, CLOSE]
    close = heard[-1][1]
    assert (int.from_bytes(close[:2]), close[2:]) == (4008, b"pong_timeout")
    assert impatient.metric("websocket_missed_pongs_total") == before + 3


def test_18_a_silent_client_that_answers_pings(review, impatient, alice, case, here):
    answered = impatient.metric("websocket_ping_rtt_seconds_count")
    with joined(review, case, alice.access, here) as socket:
        wait_until(lambda: impatient.metric("websocket_ping_rtt_seconds_count") >= answered + 4, "four pings and pongs", 15)
        talks(socket, "alice")


def test_19_a_frame_that_is_none(review, alice, case, here):
    with joined(review, case, alice.access, here) as socket:
        socket.socket.sendall(dashboard.UNMASKED)
        assert end_of(socket) == (1002, "frame_malformed")


def test_20_a_message_above_64_kib(review, alice, case, here):
    def note(size):
        return json.dumps({"say": "x" * (size - len('{"say": ""}'))})

    with joined(review, case, alice.access, here) as socket:
        socket.send(note(65536))
        assert len(json.loads(socket.recv(timeout=10))["said"]) > 65000
        socket.send(note(65537))
        assert end_of(socket) == (1009, "message_too_big")


def test_21_the_backend_is_away_and_is_back(review, alice, case, here):
    review.backend.stop()
    try:
        refused = refusal(review.gate, case, alice.access, **here)
        assert (refused.status, refused.reason) == (502, "upstream_unreachable")
        assert review.gate.probe("readyz").status_code == 200, "the backend's outage is not the gate's"
    finally:
        review.backend.start()
    with joined(review, case, alice.access, here) as socket:
        talks(socket, "alice")


def test_22_the_gate_is_stopped_for_an_update(start_example, alice, case, here):
    with start_example("case-review") as review:
        with joined(review, case, alice.access, here) as one, joined(review, case, review.login("bob").access, here) as two:
            review.gate.process.send_signal(signal.SIGTERM)
            assert [end_of(socket) for socket in (one, two)] == [(1012, "draining")] * 2
            assert review.gate.process.wait(15) == 0


def test_the_scenarios_are_those_of_its_document(review):
    rows = re.findall(r"^\| (\d+) \|", review.text("SCENARIOS.md"), re.MULTILINE)
    tests = sorted(int(name[5:7]) for name in globals() if re.match(r"test_\d\d_", name))
    assert [int(row) for row in rows] == tests == list(range(1, 23))


@pytest.fixture(scope="module")
def prometheus(review, start_prometheus):
    with start_prometheus(review.gate, dashboard.alerts("", ALERTS)) as prometheus:
        yield prometheus


def test_each_panel_of_the_dashboard_has_data_by_the_bare_names(review, prometheus, alice, case):
    with joined(review, f"{case}-silent", alice.access, somewhere()):
        panels = dashboard.shown(prometheus, "", lambda: dashboard.some_of_everything(review.gate, case, alice.access, **somewhere()))
    dashboard.check(panels)
    (((labels, active),),) = panels["Active connections"]
    assert labels == {"job": "sidegate"} and active >= 1


@contextmanager
def hung(part):
    os.killpg(part.process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.killpg(part.process.pid, signal.SIGCONT)


def test_each_alert_fires_by_the_bare_names(review, prometheus, keycloak, sign, case):
    def guess():
        """Tokens by keys that nobody knows wait for an issuer that does not answer."""
        tokens = [sign(kid=uuid.uuid4().hex) for _ in range(12)]
        with ThreadPoolExecutor(len(tokens)) as pool:
            list(pool.map(lambda token: refusal(review.gate, case, token, **somewhere()), tokens))
        return set(ALERTS) <= prometheus.firing()

    with hung(keycloak):
        wait_until(guess, "all three fire", 60)
