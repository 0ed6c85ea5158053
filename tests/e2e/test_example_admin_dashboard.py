"""examples/admin-dashboard: what its README promises."""

import json
import re
import subprocess
import sys

import pytest

from client import by_query, end_of, open_socket, refusal
from gate import tokens_in
from parts import http, wait_until
from sso import claims, wait_until_expired, with_claims

SOCKET = "/admin/ws"


@pytest.fixture(scope="module")
def dashboard(start_example):
    with start_example("admin-dashboard") as dashboard:
        yield dashboard


@pytest.fixture(scope="module")
def alice(dashboard):
    return dashboard.login("alice").access


def at(address):
    return {"source_address": (address, 0)}


def ask(socket, kind):
    socket.send(json.dumps({"type": kind}))
    return json.loads(socket.recv(timeout=10))


def play(dashboard, url):
    """The terminal client; its exit code, and its table."""
    client = [sys.executable, dashboard.folder / "client.py", "--url", f"{url}{SOCKET}".replace("http", "ws")]
    played = subprocess.run([*client, "--issuer", dashboard.issuer], capture_output=True, text=True, timeout=60)
    return played.returncode, re.findall(r"^(\w+) +(let in|refused) +(.*)$", played.stdout, re.MULTILINE), played.stderr


def test_an_administrator_asks_for_pings_and_stats(dashboard, alice):
    with open_socket(dashboard.gate, SOCKET, alice, by_query) as socket:
        assert json.loads(socket.recv(timeout=10)) == {"type": "welcome", "admin": "alice"}
        assert ask(socket, "ping") == {"type": "pong"}
        before = ask(socket, "stats")
        assert before["type"] == "stats" and before["admins"] == ["alice"] and before["uptime"] > 0
        assert ask(socket, "stats")["answered"] == before["answered"] + 1
        assert ask(socket, "reboot")["type"] == "error"


def test_the_terminal_client_prints_what_it_was_told(dashboard):
    code, table, errors = play(dashboard, dashboard.gate.url)
    assert (code, errors) == (0, "")
    assert re.fullmatch(r"welcome alice, pong in \d+\.\d ms, 1 connected", table[0][2])
    assert [(name, outcome) for name, outcome, _ in table[:1]] == [("valid", "let in")]
    assert table[1:] == [
        ("expired", "refused", "1008 token_expired"),
        ("invalid", "refused", "1008 token_signature"),
        ("missing", "refused", "1008 token_missing"),
    ]


def test_the_backend_alone_would_let_in_anybody(dashboard):
    with open_socket(dashboard.backend, SOCKET, headers=[("X-Auth-Username", "root")]) as socket:
        assert json.loads(socket.recv(timeout=10)) == {"type": "welcome", "admin": "root"}


def test_who_is_no_administrator_hears_1008_too(dashboard):
    refused = refusal(dashboard.gate, SOCKET, dashboard.login("bob").access, by_query, **at("127.0.0.42"))
    assert (refused.code, refused.reason) == (1008, "rule_denied")


def test_a_socket_ends_with_its_token_by_the_code_that_the_old_client_knows(dashboard):
    brief = dashboard.login("alice", client="admin-dashboard-brief").access
    assert claims(brief)["exp"] - claims(brief)["iat"] == 2
    with open_socket(dashboard.gate, SOCKET, brief, by_query) as socket:
        assert end_of(socket) == (1008, "token_expired")


def test_every_attempt_is_in_the_log_with_its_address_and_no_token_is_in_any(dashboard, alice, keycloak):
    brief = dashboard.login("alice", client="admin-dashboard-brief").access
    wait_until_expired(brief, leeway=1)
    tampered = with_claims(alice, sub="root")
    keycloak.issued.append(tampered)
    attempts = {"127.0.0.43": (brief, "token_expired"), "127.0.0.44": (tampered, "token_signature"), "127.0.0.45": (None, "token_missing")}
    for address, (token, reason) in attempts.items():
        refused = refusal(dashboard.gate, SOCKET, token, by_query, **at(address))
        assert (refused.code, refused.reason) == (1008, reason)
        line = dashboard.gate.line(event="handshake_refused", request_id=refused.request_id)
        assert (line["reason"], line["code"], line["address"], line["route"]) == (reason, 1008, address, SOCKET)
        assert line["target"] == (f"{SOCKET}?token=***" if token else SOCKET)
    with open_socket(dashboard.gate, SOCKET, alice, by_query, query="view=all", **at("127.0.0.46")) as socket:
        socket.recv(timeout=10)
    line = dashboard.gate.line(event="session_opened", request_id=socket.request_id)
    assert (line["address"], line["username"], line["target"]) == ("127.0.0.46", "alice", f"{SOCKET}?view=all&token=***")
    assert '"WebSocket /admin/ws?view=all" [accepted]' in dashboard.backend.output(), "uvicorn has its access log on"
    assert tokens_in(dashboard.gate.output() + dashboard.backend.output(), keycloak) == []


def test_an_address_that_keeps_guessing_is_not_listened_to(dashboard):
    here = at("127.0.0.47")
    told = {refusal(dashboard.gate, SOCKET, None, **here).reason for _ in range(20)}
    assert told == {"token_missing"}
    refused = refusal(dashboard.gate, SOCKET, None, **here)
    assert (refused.code, refused.reason) == (4029, "attempts_exceeded")


def test_the_page_comes_with_a_policy_and_its_nonce(dashboard):
    page = http.get(f"{dashboard.url}/")
    policy = page.headers["Content-Security-Policy"]
    (nonce,) = re.findall(r"script-src 'self' 'nonce-([^']+)'", policy)
    assert page.text.count(f'nonce="{nonce}"') == 2
    assert f"connect-src {dashboard.gate.url.replace('http', 'ws')} " in policy
    assert http.get(f"{dashboard.url}/sidegate.mjs").headers["Content-Type"].startswith("text/javascript")


def state_is(browser, *words):
    browser.until("args.every(word => document.querySelector('#state').textContent.includes(word))", *words)


def told(browser):
    return [json.loads(text)["type"] for text in browser.run("return [...document.querySelectorAll('#told li')].map(line => line.textContent)")]


def sign_in(browser, user):
    for name, value in {"username": user, "password": f"{user}-password"}.items():
        browser.find(f"[name={name}]").clear()
        browser.find(f"[name={name}]").send_keys(value)
    browser.run("document.querySelector('#token').value = ''")
    browser.find("#sign-in button").click()
    browser.until("document.querySelector('#token').value")


def test_the_page_talks_to_the_dashboard_and_says_why_it_may_not(dashboard, browser):
    browser.violations()
    browser.open(dashboard.url)
    browser.find("#connect").click()
    state_is(browser, "stopped", "sign in")
    sign_in(browser, "alice")
    browser.find("#connect").click()
    state_is(browser, "live")
    browser.find("#ping").click()
    browser.find("#stats").click()
    browser.until("document.querySelectorAll('#told li').length === 3")
    assert told(browser) == ["welcome", "pong", "stats"]
    browser.run("document.querySelector('#token').value += 'A'")
    browser.find("#connect").click()
    state_is(browser, "stopped", "1008", "token_signature", "exactly as the issuer gave it")
    sign_in(browser, "bob")
    browser.find("#connect").click()
    state_is(browser, "stopped", "1008", "rule_denied")
    assert browser.violations() == []
    browser.run("new WebSocket('ws://127.0.0.1:1/')")
    blocked = wait_until(browser.violations, "the browser tells what it has blocked")
    assert "connect-src" in blocked[0]
