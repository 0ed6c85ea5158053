"""examples/support-chat: what its README promises, through nginx with TLS."""

import json
import shutil
import subprocess
import time
from contextlib import contextmanager

import httpx
import pytest

from client import by_header, by_query, by_subprotocol, end_of, open_socket, refusal
from gate import BINARY
from parts import skip, wait_until
from sso import claims

TICKET = "/ws/support/4711/"
DESK = "https://desk.support.example"
TOOLS = ["nginx", "openssl"]
LIFE = 3  # seconds, in place of five minutes
LEEWAY = 2  # of sidegate.toml


@pytest.fixture(scope="module")
def support(start_example):
    if missing := [tool for tool in TOOLS if not shutil.which(tool)]:
        skip(f"no {', '.join(missing)}")
    with start_example("support-chat") as support:
        with httpx.Client(base_url=support.url, verify=support.nginx.tls, trust_env=False, timeout=30) as support.web:
            yield support


@pytest.fixture(scope="module")
def alice(support):
    return support.login("alice").access


@pytest.fixture(scope="module")
def bob(support):
    return support.login("bob").access


def hears(socket):
    return json.loads(socket.recv(timeout=10))


@contextmanager
def talking(support, token, by=by_subprotocol, path=TICKET, **options):
    with open_socket(support.nginx, path, token, by, ssl=support.nginx.tls, **options) as socket:
        socket.welcome = hears(socket)
        yield socket


def refused(support, token, by=by_subprotocol, **options):
    return refusal(support.nginx, TICKET, token, by, ssl=support.nginx.tls, **options)


def post(support, path, **form):
    return support.web.post(f"/api/auth/{path}/", json=form)


def me(support, token):
    return support.web.get("/api/auth/me/", headers=dict(by_header(token)["headers"]))


def test_nginx_accepts_the_site(support):
    checked = subprocess.run(support.nginx.command("-t"), capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
    assert "warn" not in checked.stderr


def test_systemd_accepts_the_unit_and_finds_it_little_exposed(support, tmp_path):
    if not shutil.which("systemd-analyze"):
        skip("no systemd-analyze (Debian: systemd)")
    text = (support.folder / "sidegate.service").read_text()
    unit = tmp_path / "sidegate.service"
    unit.write_text(text.replace("/usr/local/bin/sidegate", str(BINARY)))
    for question in (["verify"], ["security", "--offline=true", "--threshold=20"]):
        answer = subprocess.run(["systemd-analyze", "--no-pager", *question, unit], capture_output=True, text=True)
        assert (answer.returncode, answer.stderr) == (0, ""), answer.stdout


@pytest.mark.parametrize("by", [by_subprotocol, by_query])
def test_two_people_talk_through_nginx_and_the_gate(support, alice, bob, by):
    with talking(support, alice, by, origin=support.url) as customer, talking(support, bob, by, origin=DESK) as agent:
        assert (customer.welcome["welcome"], agent.welcome["welcome"]) == ("alice", "bob")
        assert customer.subprotocol == ("Bearer" if by is by_subprotocol else None)
        for socket, by_whom in ((customer, "alice"), (agent, "bob")):
            socket.send(json.dumps("good day"))
            said = {"by": by_whom, "said": "good day"}
            assert [hears(customer), hears(agent)] == [said, said]
    assert support.gate.line(event="session_closed", request_id=agent.request_id)["origin"] == DESK


def test_the_token_is_in_no_log_not_even_that_of_nginx(support, alice):
    with talking(support, alice, by_query) as in_query, talking(support, alice):
        pass
    assert support.gate.line(event="session_opened", request_id=in_query.request_id)["target"] == f"{TICKET}?token=***"
    access_log = support.nginx.home / "support-chat.log"
    wait_until(lambda: access_log.read_text().count(f'"GET {TICKET} HTTP/1.1" 101') >= 2, "both are in the log of nginx")
    assert alice not in access_log.read_text() + support.nginx.output() + support.gate.output() + support.backend.output()


@pytest.mark.parametrize("origin", ["https://evil.example", "https://localhost", "http://localhost:8443", f"{DESK}:444", "null"])
def test_pages_of_others_hear_4003(support, alice, origin):
    answer = refused(support, alice, origin=origin)
    assert (answer.code, answer.reason) == (4003, "origin_denied")


def test_backend_and_log_know_the_client_behind_nginx_and_that_it_came_by_tls(support, alice):
    with talking(support, alice, headers=[("X-Forwarded-For", "10.20.0.7"), ("X-Forwarded-Proto", "http")]) as socket:
        assert socket.welcome == {"welcome": "alice", "from": "127.0.0.1", "over": "https"}
    assert support.gate.line(event="session_opened", request_id=socket.request_id)["address"] == "127.0.0.1"


def test_only_allowed_addresses_get_in_whatever_they_say_of_themselves(support, alice):
    elsewhere = {"source_address": ("127.0.0.5", 0)}
    for headers in ([], [("X-Forwarded-For", "10.20.0.7")], [("X-Forwarded-For", "127.0.0.1")]):
        answer = refused(support, alice, headers=headers, **elsewhere)
        assert (answer.status, answer.reason) == (403, "address_denied")
        assert support.gate.line(event="handshake_refused", request_id=answer.request_id)["address"] == "127.0.0.5"
    transport = httpx.HTTPTransport(verify=support.nginx.tls, local_address="127.0.0.5")
    with httpx.Client(transport=transport) as outside:
        assert outside.post(f"{support.url}/api/auth/login/", json={}).json()["reason"] == "address_denied"


def test_who_comes_past_nginx_is_not_believed(support, alice):
    ignored = support.gate.metric("forwarded_ignored_total")
    with open_socket(support.gate, TICKET, alice, headers=[("X-Forwarded-For", "10.20.0.7")]) as socket:
        assert hears(socket)["from"] == "127.0.0.1"
    assert support.gate.metric("forwarded_ignored_total") == ignored + 1
    nginx_itself = refusal(
        support.gate, TICKET, alice, headers=[("X-Forwarded-For", "127.0.0.5")], source_address=("127.0.0.2", 0)
    )
    assert nginx_itself.reason == "address_denied"


def test_login_and_me_pass_untouched(support):
    answer = post(support, "login", username="alice", password="alice-password")
    assert answer.status_code == 200
    tokens = answer.json()
    support.keycloak.issued += [tokens["access_token"], tokens["refresh_token"]]
    assert claims(tokens["access_token"])["preferred_username"] == "alice"
    wrong = post(support, "login", username="alice", password="wrong")
    assert (wrong.status_code, wrong.json()["error"]) == (401, "invalid_grant"), "Keycloak's own words"
    assert me(support, tokens["access_token"]).json()["email"] == "alice@customer.example"
    # The gate would know a bad token, but this path is the backend's own: it is Keycloak that says no.
    bad = me(support, tokens["access_token"][:-4] + "AAAA")
    assert (bad.status_code, "problem" in bad.headers["Content-Type"]) == (401, False)
    assert me(support, "not-even-a-jwt").status_code == 401


def test_a_socket_lives_on_while_its_tokens_are_refreshed_and_another_does_not(support):
    with support.tokens_that_live(LIFE):
        tokens = post(support, "login", username="alice", password="alice-password").json()
        given_up = support.login("bob").access
        extended = support.gate.metric("websocket_extensions_total", result="extended")
        with (
            talking(support, tokens["access_token"], origin=support.url) as socket,
            talking(support, given_up, path="/ws/support/4712/") as other,
        ):
            end = claims(tokens["access_token"])["exp"]
            opened_by = tokens["access_token"]
            while time.time() < end + 2 * LIFE + LEEWAY:
                tokens = post(support, "refresh", refresh_token=tokens["refresh_token"]).json()
                support.keycloak.issued += [tokens["access_token"], tokens["refresh_token"]]
                assert me(support, tokens["access_token"]).status_code == 200
                socket.send(json.dumps("still here"))
                assert hears(socket) == {"by": "alice", "said": "still here"}
                time.sleep(LIFE / 3)
            assert end_of(other) == (4001, "token_expired")
            assert refused(support, opened_by).reason == "token_expired"
            assert support.gate.metric("websocket_extensions_total", result="extended") >= extended + 3
            assert end_of(socket, timeout=20) == (4001, "token_expired"), "nobody renews any longer"
    line = support.gate.line(event="session_closed", request_id=socket.request_id)
    assert line["duration_ms"] > 1000 * (2 * LIFE + LEEWAY)


def test_the_page_stays_on_one_socket_over_several_tokens(support, browser):
    browser.devtools("Security.setIgnoreCertificateErrors", ignore=True)
    with support.tokens_that_live(LIFE):
        browser.open(f"{support.url}/#4713")
        path = "/ws/support/4713/"
        browser.find("[name=username]").send_keys("alice")
        browser.find("[name=password]").send_keys("alice-password")
        browser.find("#sign-in button").click()
        browser.until("!document.querySelector('#say').hidden")
        opened = wait_until(lambda: support.gate.lines(event="session_opened", target=path), "it is in the log")
        extended = support.gate.metric("websocket_extensions_total", result="extended")
        wait_until(
            lambda: support.gate.metric("websocket_extensions_total", result="extended") >= extended + 6,
            "six newer tokens, one in each half of a life", 60,
        )  # fmt: skip
        browser.find("[name=text]").send_keys("hello, still here")
        browser.find("#say button").click()
        browser.until("document.querySelector('#said').textContent === 'alice: hello, still here'")
        assert support.gate.lines(event="session_opened", target=path) == opened
        browser.open("about:blank")
    browser.devtools("Security.setIgnoreCertificateErrors", ignore=False)
