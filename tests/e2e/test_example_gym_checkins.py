"""examples/gym-checkins: what its README promises."""

import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from statistics import median

import pytest

from client import by_header, by_query, by_subprotocol, end_of, open_socket, refusal
from parts import http
from sso import with_claims

GYM = "/ws/checkins/"
IRON = "/ws/checkins/iron/"
SOCKETS = 300


@pytest.fixture(scope="module")
def gym(start_example):
    with start_example("gym-checkins") as gym:
        yield gym


@pytest.fixture(scope="module")
def alice(gym):
    return gym.login("alice").access


@pytest.fixture(scope="module")
def bob(gym):
    return gym.login("bob").access


def hears(socket):
    return json.loads(socket.recv(timeout=10))


def test_a_room_hears_its_own_check_ins_and_the_gym_hears_all(gym, alice, bob):
    with (
        open_socket(gym.gate, GYM, alice, by_subprotocol, origin=gym.url) as lobby,
        open_socket(gym.gate, IRON, alice) as iron,
        open_socket(gym.gate, "/ws/checkins/pool/", bob) as pool,
    ):
        assert [hears(socket) for socket in (lobby, iron, pool)] == [{"welcome": user} for user in ("alice", "alice", "bob")]
        pool.send("{}")
        iron.send("{}")
        assert hears(pool) == {"member": "bob", "room": "pool"}
        assert hears(iron) == {"member": "alice", "room": "iron"}
        assert sorted(hears(lobby)["room"] for _ in range(2)) == ["iron", "pool"]
        assert lobby.subprotocol == "Bearer"


def test_an_old_client_with_its_token_in_the_query_is_let_in_and_it_is_in_no_log(gym, alice):
    with open_socket(gym.gate, IRON, alice, by_query) as socket:
        assert hears(socket) == {"welcome": "alice"}
    line = gym.gate.line(event="session_opened", request_id=socket.request_id)
    assert line["target"] == f"{IRON}?token=***"
    assert alice not in gym.gate.output() + gym.backend.output()


def test_whom_the_backend_welcomes_is_the_gates_word_alone(gym, alice):
    with open_socket(gym.gate, IRON, alice, headers=[("X-Auth-Username", "bob"), ("X_Auth_Username", "bob")]) as socket:
        assert hears(socket) == {"welcome": "alice"}


def test_a_page_hears_4001_and_others_401_where_the_token_is_not_good(gym, alice):
    tampered = with_claims(alice, preferred_username="bob")
    for token, reason in ((None, "token_missing"), (tampered, "token_signature"), ("a.b.c", "token_malformed")):
        page = refusal(gym.gate, GYM, token, by_subprotocol, origin=gym.url)
        assert (page.code, page.reason) == (4001, reason)
        old = refusal(gym.gate, GYM, token, by_query)
        assert (old.status, old.reason) == (401, reason)


def test_a_socket_ends_with_its_token_by_4001(gym):
    with gym.tokens_that_live(1):
        short = gym.login("bob").access
    with open_socket(gym.gate, IRON, short, by_subprotocol, origin=gym.url) as socket:
        assert hears(socket) == {"welcome": "bob"}
        assert end_of(socket, timeout=20) == (4001, "token_expired")
    again = refusal(gym.gate, IRON, short, by_subprotocol, origin=gym.url)
    assert (again.code, again.reason) == (4001, "token_expired")


def test_the_api_answers_with_its_own_401_and_turnstiles_get_through(gym, alice):
    url = f"{gym.url}/api/checkins/"
    for authorization in ({}, dict(by_header(alice)["headers"]), {"Authorization": "Turnstile wrong"}):
        answer = http.post(url, headers=authorization)
        assert (answer.status_code, answer.json()) == (401, {"error": "no turnstile"})
        assert answer.headers["WWW-Authenticate"] == "Turnstile"
    with open_socket(gym.gate, GYM, alice) as lobby:
        hears(lobby)
        carol = {"member": "carol", "room": "iron"}
        answer = http.post(url, headers={"Authorization": "Turnstile turnstile-7"}, json=carol)
        assert (answer.status_code, answer.json()) == (201, carol)
        assert hears(lobby) == carol


def test_the_page_has_a_policy_with_its_nonce_and_the_origin_of_its_sockets(gym):
    nonces = set()
    for _ in range(2):
        page = http.get(gym.url)
        (policy,) = page.headers.get_list("Content-Security-Policy")
        (nonce,) = set(re.findall(r'nonce="([^"]+)"', page.text))
        directives = {name: values for name, *values in map(str.split, policy.split(";"))}
        assert directives["connect-src"] == [f"ws://127.0.0.1:{gym.gate.port}", gym.keycloak.url]
        assert directives["script-src"] == ["'self'", f"'nonce-{nonce}'"]
        assert directives["default-src"] == ["'none'"]
        nonces.add(nonce)
    assert len(nonces) == 2


def test_health_is_steady_while_hundreds_of_sockets_come_and_listen(gym, alice):
    loaded, took = True, []

    def look():
        while loaded:
            began = time.monotonic()
            answer = http.get(f"{gym.url}/health/")
            took.append(time.monotonic() - began)
            assert (answer.status_code, answer.json()) == (200, {"status": "ok"})

    with ThreadPoolExecutor() as pool, ExitStack() as sockets:
        looking = pool.submit(look)
        try:
            opened = [sockets.enter_context(open_socket(gym.gate, GYM, alice)) for _ in range(SOCKETS)]
            for socket in opened:
                assert hears(socket) == {"welcome": "alice"}
            for _ in range(5):
                opened[0].send("{}")
                for socket in opened:
                    assert hears(socket) == {"member": "alice", "room": None}
            assert gym.gate.metric("websocket_active_connections") == SOCKETS
        finally:
            loaded = False
        looking.result()
    assert len(took) > 20
    assert (median(took) < 0.1, max(took) < 2) == (True, True), f"{median(took)} s, at most {max(took)} s"


def test_the_page_signs_in_checks_in_and_runs_nothing_but_its_own_scripts(gym, browser):
    browser.open(gym.url)
    assert browser.run("return getComputedStyle(document.body).maxWidth") == "640px", "its own style is in force"
    browser.find("[name=username]").send_keys("alice")
    browser.find("[name=password]").send_keys("alice-password")
    browser.find("#sign-in button").click()
    browser.until("!document.querySelector('#check-in').hidden")
    browser.find("#check-in").click()
    browser.until("document.querySelector('#check-ins').textContent === 'alice'")
    foreign = f"ws://127.0.0.1:{gym.backend.port}{GYM}"
    blocked = browser.run("""
        const blocked = [];
        document.addEventListener("securitypolicyviolation", (event) => blocked.push([event.effectiveDirective, event.blockedURI]));
        const script = document.createElement("script");
        script.textContent = "document.title = 'taken over'";
        document.body.append(script);
        await new Promise((done) => { new WebSocket(args[0]).onerror = done; });
        return blocked;
    """, foreign)  # fmt: skip
    assert blocked == [["script-src-elem", "inline"], ["connect-src", foreign]]
    assert browser.run("return document.title") == "Check-ins"
