"""examples/org-events: what its README promises."""

import json
import os
import subprocess
import sys
from base64 import urlsafe_b64encode
from contextlib import contextmanager

import pytest

from client import by_header, by_query, by_subprotocol, end_of, open_socket, refusal
from parts import http, wait_until
from sso import claims

MINE = "/ws/notifications/"
ACME = "/ws/events/acme/"
GLOBEX = "/ws/events/globex/"
PAGE = "https://app.org-events.example"


@pytest.fixture(scope="module")
def org(start_example):
    with start_example("org-events") as org:
        yield org


@pytest.fixture(scope="module")
def alice(org):
    """Of acme."""
    return org.login("alice").access


@pytest.fixture(scope="module")
def bob(org):
    """Of globex."""
    return org.login("bob").access


@pytest.fixture(scope="module")
def carol(org):
    """Of both."""
    return org.login("carol").access


def hears(socket):
    return json.loads(socket.recv(timeout=10))


@contextmanager
def listening(org, path, token, by=by_header, **options):
    with open_socket(org.gate, path, token, by, **options) as socket:
        socket.welcome = hears(socket)
        yield socket


def post(org, path, token, text):
    return http.post(f"{org.url}{path}", headers=dict(by_header(token)["headers"]) if token else {}, json={"text": text})


def test_the_middleware_is_twenty_lines_at_most(org):
    lines = (org.folder / "backend" / "middleware.py").read_text().splitlines()
    assert len(lines) <= 20
    readme = (org.folder / "README.md").read_text()
    assert f"[{len(lines)} lines](backend/middleware.py)" in readme


@pytest.mark.parametrize("by", [by_header, by_query])
def test_consumers_know_their_user_and_the_claims_by_either_carrier(org, carol, by):
    with listening(org, MINE, carol, by) as socket:
        assert socket.welcome["user"] == "carol"
        assert sorted(socket.welcome["organizations"]) == ["acme", "globex"] == sorted(claims(carol)["organization"])


def test_members_and_nobody_else_are_let_into_an_organization(org, alice, bob, carol):
    for path, token in ((ACME, alice), (GLOBEX, bob), (ACME, carol), (GLOBEX, carol)):
        with listening(org, path, token):
            pass
    for path, token in ((GLOBEX, alice), (ACME, bob), ("/ws/events/initech/", carol)):
        page = refusal(org.gate, path, token, by_query, origin=PAGE)
        assert (page.code, page.reason) == (4003, "rule_denied")
        program = refusal(org.gate, path, token)
        assert (program.status, program.reason) == (403, "rule_denied")
    assert "initech" not in org.backend.output()


def test_a_token_without_organizations_is_let_into_none(org):
    plain = org.login("alice", scope="openid").access
    assert "organization" not in claims(plain)
    assert refusal(org.gate, ACME, plain).reason == "rule_denied"
    with listening(org, MINE, plain) as socket:
        assert socket.welcome == {"user": "alice", "organizations": []}


def test_organizations_hear_nothing_of_each_other(org, alice, bob, carol):
    with listening(org, ACME, alice) as acme, listening(org, GLOBEX, bob) as globex, listening(org, GLOBEX, carol) as both:
        assert post(org, "/api/events/acme/", alice, "doors open").status_code == 202
        assert post(org, "/api/events/globex/", alice, "not hers").json()["reason"] == "rule_denied"
        assert post(org, "/api/events/acme/", bob, "not his").status_code == 403
        assert post(org, "/api/events/globex/", carol, "lunch").status_code == 202
        assert hears(acme) == {"event": "doors open", "by": "alice", "organization": "acme"}
        lunch = {"event": "lunch", "by": "carol", "organization": "globex"}
        assert [hears(globex), hears(both)] == [lunch, lunch]
        assert post(org, "/api/events/acme/", carol, "closing").status_code == 202
        assert hears(acme) == {"event": "closing", "by": "carol", "organization": "acme"}


def test_notifications_are_for_oneself(org, alice, bob):
    with listening(org, MINE, alice) as one, listening(org, MINE, alice, by_query) as other, listening(org, MINE, bob) as foreign:
        assert post(org, "/api/notifications/", None, "nobody's").json()["reason"] == "token_missing"
        assert post(org, "/api/notifications/", alice, "hers").status_code == 202
        assert post(org, "/api/notifications/", bob, "his").status_code == 202
        assert [hears(socket) for socket in (one, other, foreign)] == [{"notification": text} for text in ("hers", "hers", "his")]


def test_who_writes_identity_headers_of_his_own_is_still_himself(org, alice, bob):
    forged = urlsafe_b64encode(json.dumps(claims(bob) | {"organization": ["acme", "globex"]}).encode()).decode()
    headers = [(name, forged) for name in ("X-Auth-Claims", "x_auth_claims", "X-AUTH-CLAIMS")]
    with listening(org, MINE, alice, headers=headers) as socket:
        assert socket.welcome == {"user": "alice", "organizations": ["acme"]}
    assert refusal(org.gate, GLOBEX, alice, headers=headers).reason == "rule_denied"


@pytest.mark.parametrize("origin", [PAGE, "self"])
def test_our_own_pages_may_open_sockets(org, alice, origin):
    with listening(org, ACME, alice, by_query, origin=org.url if origin == "self" else origin):
        pass


@pytest.mark.parametrize("origin", ["https://evil.example", f"{PAGE}.evil.example", PAGE.replace("https", "http"), f"{PAGE}:8443", "null"])
def test_pages_of_others_hear_4003_whatever_their_token(org, alice, origin):
    # From an address of its own: those of 127.0.0.1 are counted already.
    page = refusal(org.gate, ACME, alice, by_query, origin=origin, source_address=("127.0.0.6", 0))
    assert (page.code, page.reason) == (4003, "origin_denied")


def test_a_subprotocol_is_no_carrier_here(org, alice):
    assert refusal(org.gate, MINE, alice, by_subprotocol).reason == "token_missing"


def test_listen_py_hears_its_organization_over_the_end_of_its_token(org, alice, tmp_path):
    path = tmp_path / "heard"
    with path.open("w") as heard, org.tokens_that_live(1):
        listener = subprocess.Popen(
            [sys.executable, org.folder / "listen.py", "bob", GLOBEX],
            env=os.environ | {"GATE": org.url, "ISSUER": org.issuer}, stdout=heard, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            wait_until(lambda: path.read_text().count('{"user": "bob"') == 2, "it is back with a new token", 40)
        finally:
            listener.terminate()
            listener.wait(10)
    assert "waiting token_expired" in path.read_text()


def test_a_socket_of_its_own_ends_with_its_token_in_spite_of_a_newer_one(org):
    """With [identity] payload nothing prolongs it, for the backend was told the claims of the first."""
    with org.tokens_that_live(1):
        tokens = org.login("alice")
    with listening(org, MINE, tokens.access) as socket:
        newer = org.keycloak.renew(tokens).access
        assert post(org, "/api/notifications/", newer, "still here").status_code == 202
        assert hears(socket) == {"notification": "still here"}
        assert end_of(socket, timeout=20) == (4001, "token_expired")
