"""Who may not come back, and who is on: revocations and sessions, with tokens of Keycloak on sockets of
Daphne and uvicorn."""

import time
from datetime import UTC, datetime

import pytest

from client import PAGE, by_header, by_subprotocol, end_of, open_socket, opens, refusal, seen_by, talks
from gate import tokens_in
from parts import Mount, http, wait_until
from sso import claims

OTHER_REALM = '[[issuer]]\nurl = "{}"\naudiences = ["chat"]'


@pytest.fixture
def revoke(gate):
    """Revokes, and takes it back after the test."""
    ids = set()

    def post(expected=201, **selector):
        answer = gate.admin("POST", "/revocations", json=selector)
        assert answer.status_code == expected, answer.text
        ids.add(answer.json()["id"])
        return answer.json()

    yield post
    for revocation in ids:
        gate.admin("DELETE", f"/revocations/{revocation}")


@pytest.fixture
def other_room(room):
    return f"{room[:-1]}-other/"


def utc(seconds):
    return datetime.fromtimestamp(seconds, UTC).strftime("%FT%T.000Z")


def after_issue(said):
    """Issue times are whole seconds: the first moment that has this token before it, and a new one not."""
    return said["iat"] + 1


# What is named, how the socket ends, and whether a refreshed token and a new login come in afterwards.
KINDS = {
    "jti": (lambda said: {"jti": said["jti"]}, (4001, "token_revoked"), None, None),
    "sid": (lambda said: {"sid": said["sid"]}, (4001, "token_revoked"), "token_revoked", None),
    "sub": (lambda said: {"sub": said["sub"]}, (4003, "user_revoked"), "user_revoked", "user_revoked"),
    "sub and issued_before": (
        lambda said: {"sub": said["sub"], "issued_before": utc(after_issue(said))}, (4001, "token_revoked"), None, None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_revocation_closes_whom_it_names_and_nobody_else(gate, daphne, keycloak, bob, room, other_room, revoke, kind):
    selector, end, renewed, new_login = KINDS[kind]
    tokens = keycloak.login("alice")
    said = claims(tokens.access)
    measured = gate.metric("revocation_to_close_seconds_count")
    with open_socket(gate, room, tokens.access) as socket, open_socket(gate, other_room, bob.access) as bystander:
        seen_by(socket), seen_by(bystander)
        began = time.monotonic()
        answer = revoke(**selector(said), reason="lost her phone")
        assert end_of(socket) == end
        assert time.monotonic() - began < 2
        daphne.wait_until_left(room)
        talks(bystander, "bob")
    assert (answer["closed"], answer["scope"], answer["durable"]) == (1, "replica", False)
    wait_until(lambda: gate.metric("revocation_to_close_seconds_count") == measured + 1, "the time that it took", 5)

    closed = gate.line(event="session_closed", request_id=socket.request_id)
    assert (closed["code"], closed["reason"], closed["username"], closed["sid"]) == (*end, "alice", said["sid"])
    audit = gate.line(event="revocation", id=answer["id"])
    assert (audit["by"], audit["closed"], audit["note"], audit["iss"]) == ("127.0.0.1", 1, "lost her phone", gate.issuer)
    assert selector(said).items() <= audit.items() | answer["revocation"].items()
    assert audit["expires_at"] == answer["revocation"]["expires_at"]

    again = refusal(gate, room, tokens.access)
    assert (again.status, again.reason) == (401 if end[0] == 4001 else 403, end[1])
    in_browser = refusal(gate, room, tokens.access, by_subprotocol, origin=PAGE)
    assert (in_browser.code, in_browser.reason) == end
    plain = http.get(f"{gate.url}/api/me/", headers=by_header(tokens.access)["headers"])
    assert (plain.status_code, plain.json()["reason"]) == (again.status, end[1])
    time.sleep(max(0, after_issue(said) - time.time()))
    for token, label in ((keycloak.renew(tokens).access, renewed), (keycloak.login("alice").access, new_login)):
        if label:
            assert refusal(gate, room, token).reason == label
        else:
            assert opens(gate, room, token).identity["x-auth-username"] == "alice"


def test_a_whole_issuer_is_logged_out_and_whoever_signs_in_again_is_back(start_gate, keycloak, alice, bob, room):
    mallory = keycloak.login("mallory", realm="other")
    other = keycloak.issuer("other")
    with (
        start_gate(more=OTHER_REALM.format(other)) as gate,
        open_socket(gate, room, mallory.access) as named,
        open_socket(gate, room, alice.access) as one,
        open_socket(gate, "/ws/echo/", bob.access) as two,
    ):
        for socket in (named, one, two):
            seen_by(socket)
        moment = after_issue(claims(mallory.access))
        unnamed = gate.admin("POST", "/revocations", json={"issued_before": utc(moment)})
        assert unnamed.status_code == 400
        assert gate.issuer in unnamed.json()["detail"] and other in unnamed.json()["detail"]
        revoked = gate.admin("POST", "/revocations", json={"issued_before": utc(moment), "iss": other}).json()
        assert revoked["closed"] == 1
        assert end_of(named) == (4001, "token_revoked")
        talks(one, "alice")
        assert refusal(gate, room, mallory.access).reason == "token_revoked"
        time.sleep(max(0, moment - time.time()))
        assert opens(gate, room, keycloak.login("mallory", realm="other").access)

        moment = utc(time.time())
        assert gate.admin("POST", "/revocations", json={"issued_before": moment, "iss": gate.issuer}).json()["closed"] == 2
        # FastAPI's sockets as well as Channels'.
        assert [end_of(socket) for socket in (one, two)] == [(4001, "token_revoked")] * 2
        wait_until(lambda: not gate.sessions(), "nobody is on the gate")


def test_a_revocation_is_listed_known_the_second_time_and_can_be_taken_back(gate, keycloak, room, revoke):
    token = keycloak.login("bob").access
    selector = {"jti": claims(token)["jti"]}  # has a colon in it
    first = revoke(**selector, ttl="90s")
    assert 80 < datetime.fromisoformat(first["revocation"]["expires_at"]).timestamp() - time.time() < 91
    assert revoke(expected=200, **selector, ttl="90s")["id"] == first["id"]
    assert refusal(gate, room, token).reason == "token_revoked"
    listed = gate.admin("GET", "/revocations").json()
    assert first["id"] in [one["id"] for one in listed["revocations"]]
    assert gate.metric("blacklist_entries") == listed["total"]

    assert gate.admin("DELETE", f"/revocations/{first['id']}").status_code == 204
    assert gate.line(event="revocation_withdrawn", id=first["id"])["by"] == "127.0.0.1"
    assert opens(gate, room, token)
    assert gate.admin("DELETE", f"/revocations/{first['id']}").status_code == 404


def test_a_revocation_closes_nobody_on_a_shadow_route(gate, alice, revoke):
    path, reason = "/ws/shadow/acme/", "user_revoked"
    before = gate.metric("would_refuse_total", reason=reason)
    with open_socket(gate, path, alice.access) as socket:
        seen_by(socket)
        assert revoke(sub=claims(alice.access)["sub"])["closed"] == 0
        talks(socket, "alice")
        with open_socket(gate, path, alice.access) as later:
            seen_by(later)
    assert gate.line(event="session_opened", request_id=later.request_id)["would_refuse"] == reason
    assert gate.metric("would_refuse_total", reason=reason) >= before + 1


def test_whom_a_revocation_would_have_closed_on_a_shadow_route_is_told(gate, alice, revoke):
    with open_socket(gate, "/ws/shadow/acme/", alice.access) as socket:
        seen_by(socket)
        revoke(sub=claims(alice.access)["sub"])
    assert gate.line(event="session_closed", request_id=socket.request_id).get("would_refuse") == "user_revoked"


def test_a_revoked_token_makes_nobody_on_a_shadow_route(gate, keycloak, revoke):
    token = keycloak.login("alice").access
    assert opens(gate, "/ws/shadow/acme/", token).identity["x-auth-username"] == "alice"
    revoke(jti=claims(token)["jti"])
    assert opens(gate, "/ws/shadow/acme/", token).identity == {}


def test_what_names_nobody_is_refused_and_closes_nobody(gate, alice, room):
    said = claims(alice.access)
    with open_socket(gate, room, alice.access) as socket:
        seen_by(socket)
        for body in (
            {},
            {"sub": said["sub"], "sid": said["sid"]},
            {"sub": ""},
            {"username": "alice"},
            {"sub": said["sub"], "issued_before": utc(time.time() + 3600)},
            {"sub": said["sub"], "iss": "https://sso.example.com/realms/demo"},
            {"sub": said["sub"], "ttl": "soon"},
        ):
            answer = gate.admin("POST", "/revocations", json=body)
            assert (answer.status_code, answer.headers["Content-Type"]) == (400, "application/problem+json"), body
            assert "accepted" in answer.json()["detail"]
        assert gate.admin("DELETE", "/sessions").status_code == 400
        talks(socket, "alice")


def test_only_an_operator_with_the_token_may_ask_and_no_web_page(gate, alice, room):
    with open_socket(gate, room, alice.access) as socket:
        seen_by(socket)
        bearer = {"Authorization": f"Bearer {gate.token}"}
        refused = [http.delete(f"{gate.admin_url}/sessions?all=true", headers=headers) for headers in (
            {}, {"Authorization": "Bearer guessed"}, {"Authorization": f"Bearer {alice.access}"},
        )]  # fmt: skip
        assert {answer.status_code for answer in refused} == {401}
        assert len({answer.text for answer in refused}) == 1
        assert gate.token not in gate.admin("GET", "/config").text
        for page in ({"Origin": PAGE}, {"Host": "rebound.example.com"}):
            assert http.delete(f"{gate.admin_url}/sessions?all=true", headers=bearer | page).status_code == 403
        for elsewhere in (gate.url, gate.probes):
            assert http.delete(f"{elsewhere}/sessions?all=true", headers=bearer).status_code == 404
        talks(socket, "alice")


def test_the_list_of_sessions_tells_who_is_on_and_closes_whom_the_operator_picks(
    gate, daphne, keycloak, bob, room, other_room
):
    alice = keycloak.login("alice")
    said = claims(alice.access)
    from_afar = {"origin": PAGE, "source_address": ("127.0.0.5", 0)}
    with (
        open_socket(gate, room, alice.access, by_subprotocol, **from_afar) as socket,
        open_socket(gate, "/ws/echo/", alice.access) as second,
        open_socket(gate, other_room, bob.access) as bystander,
        open_socket(gate, "/ws/public/lobby/") as nobody,
    ):
        for one in (socket, second, bystander, nobody):
            seen_by(one)
        talks(socket, "alice")

        def listed():
            (row,) = gate.sessions(sid=said["sid"], route="/ws/chat/{room}/")
            return row if row["received"]["messages"] == 1 and row["sent"]["messages"] == 2 else None

        row = wait_until(listed, "the message is counted", 5)
        whole = {name: row[name] for name in ("iss", "sub", "sid", "jti")}
        assert whole == {name: said[name] for name in whole}
        assert (row["client"], row["username"], row["route"]) == ("chat", "alice", "/ws/chat/{room}/")
        assert (row["address"], row["origin"]) == ("127.0.0.5", PAGE)
        assert datetime.fromisoformat(row["expires_at"]).timestamp() == pytest.approx(said["exp"] + 1, abs=0.1)
        for moment in ("started_at", "last_data_at"):
            assert 0 <= time.time() - datetime.fromisoformat(row[moment]).timestamp() < 10

        answer = gate.admin("GET", "/sessions")
        rows = answer.json()["sessions"]
        assert tokens_in(answer.text, keycloak) == []
        assert (answer.json()["total"], answer.json()["next"]) == (4, None)
        assert sorted(row["username"] or "" for row in rows) == ["", "alice", "alice", "bob"]
        for filters, count in (
            ({"sub": said["sub"]}, 2),
            ({"sub": said["sub"], "address": "127.0.0.5"}, 1),
            ({"jti": said["jti"], "client": "chat"}, 2),
            ({"iss": gate.issuer}, 3),
            ({"route": "/ws/public/{room}/"}, 1),
            ({"id": row["id"]}, 1),
            ({"sub": "alice"}, 0),  # a username is no sub
        ):
            assert len(gate.sessions(**filters)) == count, filters
        pages, after = [], {}
        while after is not None:
            page = gate.admin("GET", "/sessions", params={"limit": 3, **after}).json()
            pages.append([row["id"] for row in page["sessions"]])
            after = {"after": page["next"]} if page["next"] else None
        assert [len(page) for page in pages] == [3, 1]
        assert sum(pages, []) == [row["id"] for row in rows]

        picked = {"sub": said["sub"], "route": "/ws/chat/{room}/"}
        dry = gate.admin("DELETE", "/sessions", params={**picked, "dry_run": "true"}).json()
        assert dry == {"matched": 1, "closed": 0, "dry_run": True}
        talks(socket, "alice")
        assert gate.admin("DELETE", "/sessions", params=picked).json() == {"matched": 1, "closed": 1, "dry_run": False}
        assert end_of(socket) == (1012, "operator_closed")
        daphne.wait_until_left(room)
        second.send("still here")
        assert second.recv(timeout=5) == "still here"
        talks(bystander, "bob")
        audit = gate.line(event="sessions_closed")
        assert (audit["by"], audit["closed"]) == ("127.0.0.1", 1)
        assert said["sub"] in audit["filter"] and "/ws/chat/{room}/" in audit["filter"]
        # Nobody is revoked: she may come back.
        assert opens(gate, room, alice.access)
        assert gate.admin("DELETE", "/sessions", params={"all": "true"}).json()["closed"] == 3
        assert [end_of(one)[0] for one in (second, bystander, nobody)] == [1012] * 3


def test_the_blacklist_file_counts_as_soon_as_its_mount_is_swapped(
    start_gate, daphne, keycloak, bob, tmp_path, room, other_room
):
    alice = keycloak.login("alice")
    said = claims(alice.access)
    file = Mount(tmp_path / "mount", "blacklist", "# nobody yet\n")
    with (
        start_gate(more=f'[blacklist]\nfile = "{file.path}"') as gate,
        open_socket(gate, room, alice.access) as socket,
        open_socket(gate, other_room, bob.access) as bystander,
    ):
        seen_by(socket), seen_by(bystander)
        file.write(f"# thrown out in March\n\nsid {said['sid']}  # alice's laptop\nuser alice\njti {said['jti']}\n")
        assert end_of(socket, timeout=4) == (4001, "token_revoked")
        daphne.wait_until_left(room)
        assert refusal(gate, room, alice.access).reason == "token_revoked"
        talks(bystander, "bob")
        audit = gate.line(event="revocation", by="file", entries=2)
        assert (audit["closed"], audit["skipped"], audit["level"]) == (1, 1, "warn")
        skipped = gate.line(event="blacklist_line_skipped")
        assert skipped["line"] == 4 and "sub X" in skipped["message"]
        assert gate.metric("blacklist_entries") == 2

        # A file that is gone takes nothing back.
        aside = file.path.with_name("aside")
        file.path.rename(aside)
        assert str(file.path) in gate.line(event="blacklist_file_lost")["message"]
        assert refusal(gate, room, alice.access).reason == "token_revoked"
        aside.rename(file.path)

        file.write(f"sub {claims(bob.access)['sub']}\n")
        assert end_of(bystander, timeout=4) == (4003, "user_revoked")
        assert refusal(gate, room, keycloak.login("bob").access).reason == "user_revoked"
        assert opens(gate, room, alice.access), "her line is gone"
