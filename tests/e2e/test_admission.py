"""Who comes in, and what the backend is told about them."""

import json
import uuid
from urllib.parse import unquote

import pytest

from client import (
    CARRIERS, PAGE, Seen, by_cookie, by_header, by_kubernetes, by_query, by_subprotocol, open_socket, opens, refusal, seen_by,
)  # fmt: skip
from parts import http
from sso import claims, encode

# Every spelling that a backend might fold into ours.
SPOOFED = [
    ("X-Auth-Subject", "root"),
    ("x-auth-subject", "root"),
    ("X_Auth_Subject", "root"),
    ("X-Auth_Username", "root"),
    ("X-AUTH-ROLES", "admin"),
    ("x_auth_roles", "admin"),
    ("X-Auth-Email", "root@example.com"),
    ("X-Auth-Name", "root"),
]


def is_told_of(identity, token):
    """The backend was told what this token says, and nothing else."""
    said = claims(token)
    assert identity.keys() == {"x-auth-subject", "x-auth-username", "x-auth-email", "x-auth-name", "x-auth-roles"}
    assert identity["x-auth-subject"] == said["sub"]
    assert identity["x-auth-username"] == said["preferred_username"]
    assert identity["x-auth-email"] == said["email"]
    # "Åström" is no ASCII: percent-encoded UTF-8.
    assert identity["x-auth-name"].isascii() and unquote(identity["x-auth-name"]) == said["name"]
    assert identity["x-auth-roles"].split(",") == said["realm_access"]["roles"]


@pytest.mark.parametrize("by", CARRIERS)
def test_a_token_in_each_carrier_opens_a_socket_and_the_backend_is_told_who(gate, alice, room, by):
    with open_socket(gate, room, alice.access, by) as socket:
        seen = seen_by(socket)
        is_told_of(seen.identity, alice.access)
        socket.send(json.dumps({"say": "hello"}))
        assert json.loads(socket.recv(timeout=5)) == {"by": "alice", "said": "hello"}
    opened = gate.line(event="session_opened", request_id=socket.request_id)
    assert (opened["username"], opened["sub"], opened["client"]) == ("alice", claims(alice.access)["sub"], "chat")
    assert opened["route"] == "/ws/chat/{room}/"


@pytest.mark.parametrize("by", CARRIERS)
def test_the_backend_never_sees_the_token(gate, alice, room, by):
    everything = json.dumps(opens(gate, room, alice.access, by))
    assert alice.access not in everything
    assert encode(alice.access.encode()) not in everything


def test_only_the_token_is_taken_out_and_all_beside_it_stays(gate, alice, room):
    assert opens(gate, room, alice.access, by_query, query="before=%31&after=2+2")["query"] == "before=%31&after=2+2"
    beside = by_cookie(alice.access)["headers"][0][1]
    seen = opens(gate, room, headers=[("Cookie", f"theme=dark; {beside}; lang=sv")], origin=PAGE)
    assert seen.all("cookie") == ["theme=dark; lang=sv"]
    basic = [("Authorization", "Basic YTpi")]
    assert opens(gate, room, alice.access, by_query, headers=basic).all("authorization") == ["Basic YTpi"]


@pytest.mark.parametrize(
    ("by", "offered", "shown", "selected"),
    [
        (by_subprotocol, ["chat.v1"], ["chat.v1"], "chat.v1"),
        (by_subprotocol, ["unknown"], ["unknown"], "Bearer"),
        (by_subprotocol, [], [], "Bearer"),
        (by_kubernetes, ["chat.v1"], ["chat.v1"], "chat.v1"),
        (by_kubernetes, [], [], None),
        (by_header, ["chat.v1", "chat.v2"], ["chat.v1", "chat.v2"], "chat.v1"),
    ],
)
def test_a_subprotocol_is_selected_as_if_the_token_had_not_been_among_them(gate, alice, room, by, offered, shown, selected):
    with open_socket(gate, room, alice.access, by, subprotocols=offered) as socket:
        assert seen_by(socket)["subprotocols"] == shown
        assert socket.subprotocol == selected


@pytest.mark.parametrize("path", ["/ws/chat/spoofed/", "/ws/guests/spoofed/", "/ws/echo/"])
def test_identity_headers_of_a_client_are_not_seen_in_any_spelling(gate, alice, path):
    is_told_of(opens(gate, path, alice.access, headers=SPOOFED).identity, alice.access)


@pytest.mark.parametrize("path", ["/ws/guests/spoofed/", "/ws/public/spoofed/"])
def test_who_comes_without_a_token_is_told_as_nobody(gate, path):
    assert opens(gate, path, headers=SPOOFED).identity == {}


def test_identity_headers_of_a_plain_request_are_removed_and_ours_set(gate, alice):
    nobody = http.get(f"{gate.url}/api/echo/", headers=SPOOFED)
    assert not [name for name, _ in nobody.json()["headers"] if "auth" in name.lower()]
    somebody = http.get(f"{gate.url}/api/me/", headers=[*by_header(alice.access)["headers"], *SPOOFED])
    is_told_of(Seen(somebody.json()).identity, alice.access)


def test_what_proxies_tell_backends_is_not_believed_from_a_client(gate, alice, room):
    told = [
        ("X-Forwarded-For", "203.0.113.9"),
        ("X-Real-IP", "203.0.113.9"),
        ("X-Forwarded-Prefix", "/admin"),
        ("Forwarded", "for=203.0.113.9"),
        ("Daphne-Root-Path", "/admin"),
    ]
    seen = opens(gate, room, alice.access, headers=told)
    assert seen.all("x-forwarded-for") == seen.all("x-real-ip") == ["127.0.0.1"]
    assert not seen.all("x-forwarded-prefix") + seen.all("forwarded") + seen.all("daphne-root-path")
    assert seen["path"] == room
    assert seen.all("host") == [f"127.0.0.1:{gate.port}"]


def test_a_bad_token_is_refused_also_where_none_is_needed(gate, alice):
    assert refusal(gate, "/ws/guests/lobby/", alice.id).reason == "token_type"
    assert refusal(gate, "/ws/guests/lobby/", alice.id, origin=PAGE).code == 4001


@pytest.mark.parametrize("organization", ["acme", "globex"])
def test_an_organizations_room_is_for_its_members(gate, alice, bob, organization):
    member, stranger = (alice, bob) if organization == "acme" else (bob, alice)
    path = f"/ws/events/{organization}/"
    assert opens(gate, path, member.access)["path"] == path
    over_http = refusal(gate, path, stranger.access)
    assert (over_http.status, over_http.reason) == (403, "rule_denied")
    by_close = refusal(gate, path, stranger.access, origin=PAGE)
    assert (by_close.code, by_close.reason) == (4003, "rule_denied")
    refused = gate.line(event="handshake_refused", request_id=over_http.request_id)
    assert (refused["reason"], refused["username"]) == ("rule_denied", "bob" if stranger is bob else "alice")


def test_a_token_that_names_no_organization_opens_no_organizations_room(gate, keycloak):
    token = keycloak.login("alice", scope="openid").access
    assert "organization" not in claims(token)
    assert refusal(gate, "/ws/events/acme/", token).reason == "rule_denied"


def test_a_role_opens_what_needs_it(gate, alice, bob):
    assert opens(gate, "/ws/staff/lobby/", alice.access).identity["x-auth-username"] == "alice"
    assert refusal(gate, "/ws/staff/lobby/", bob.access).reason == "rule_denied"


def test_a_path_that_no_route_names_is_refused(gate, alice):
    unknown = refusal(gate, "/ws/unknown/lobby/", alice.access)
    assert (unknown.status, unknown.reason) == (404, "route_unknown")


def test_two_tokens_that_differ_are_ambiguous(gate, alice, bob, room):
    both = {"token": alice.access, "by": by_header, "query": f"token={bob.access}"}
    over_http = refusal(gate, room, **both)
    assert (over_http.status, over_http.reason) == (400, "token_ambiguous")
    by_close = refusal(gate, room, **both, origin=PAGE)
    assert (by_close.code, by_close.reason) == (4003, "token_ambiguous")


def test_a_foreign_page_opens_nothing_with_a_good_token(gate, daphne, alice, room):
    denied = refusal(gate, room, alice.access, origin="https://evil.example")
    assert (denied.code, denied.reason) == (4003, "origin_denied")
    assert room not in daphne.output()


def test_a_cookie_is_worth_nothing_without_a_listed_page(gate, daphne, alice, room):
    cookie = by_cookie(alice.access)["headers"]
    without_a_page = refusal(gate, room, headers=cookie)
    assert (without_a_page.status, without_a_page.reason) == (403, "origin_denied")
    foreign = refusal(gate, room, headers=cookie, origin="https://evil.example")
    assert (foreign.code, foreign.reason) == (4003, "origin_denied")
    assert room not in daphne.output()


def test_a_route_may_leave_its_pages_to_the_web_origins_of_the_client_at_keycloak(gate, alice):
    path = f"/ws/partner/{uuid.uuid4().hex}/"
    assert opens(gate, path, alice.access, origin="https://partner.example.com")["path"] == path
    assert refusal(gate, path, alice.access, origin=PAGE).reason == "origin_denied"
