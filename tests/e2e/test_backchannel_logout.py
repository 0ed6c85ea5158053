"""Who logs out at Keycloak, or is signed out there, loses the sockets too: OpenID Connect Back-Channel Logout."""

import json
import threading
import time
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from client import PAGE, by_header, by_subprotocol, end_of, opens, refusal, talks
from gate import closing_soon
from parts import HERE, http, wait_until
from sso import Keycloak, claims, encode, header, with_claims

PATH = "/oidc/backchannel-logout"
REALM = "leaving"
TOLD = ["chat", "phone", "recorded"]  # the clients that the gates believe
EVENT = "http://schemas.openid.net/event/backchannel-logout"
REVOKED = (4001, "token_revoked")


class Recorder:
    """Takes logout tokens instead of a gate, and keeps them."""

    def __init__(self):
        recorder, self.forms = self, []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                recorder.forms.append((self.headers["Content-Type"], parse_qs(body)))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever)

    def take(self):
        """The logout tokens since the last time."""
        forms, self.forms = self.forms, []
        for kind, form in forms:
            assert kind.startswith("application/x-www-form-urlencoded") and list(form) == ["logout_token"]
        return [form["logout_token"][0] for _, form in forms]

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


def post(gate, logout_token, request_id="unnamed"):
    """What Keycloak does."""
    return http.post(f"{gate.url}{PATH}", data={"logout_token": logout_token}, headers={"X-Request-ID": request_id})


def listening(clients, redis=None):
    feed = f'redis = {{ url = "redis://127.0.0.1:{redis.port}" }}\n' if redis else ""
    return f'[blacklist]\n{feed}backchannel_logout = {{ path = "{PATH}", clients = {json.dumps(clients)} }}'


@pytest.fixture(scope="module", autouse=True)
def realm(keycloak):
    keycloak.add_realm(json.loads((HERE / "keycloak" / f"{REALM}-realm.json").read_text()))


@pytest.fixture(scope="module")
def gates(start_gate, redis, realm):
    """Two of one Redis; Keycloak knows of the first alone."""
    more = listening(TOLD, redis)
    with start_gate(realm=REALM, more=more) as told, start_gate(realm=REALM, more=more) as other:
        yield told, other


@pytest.fixture(scope="module")
def recorder():
    with Recorder() as recorder:
        yield recorder


@pytest.fixture(scope="module", autouse=True)
def clients(keycloak, gates, recorder):
    mapper = {
        "name": "audience",
        "protocol": "openid-connect",
        "protocolMapper": "oidc-audience-mapper",
        "config": {"included.custom.audience": "chat", "access.token.claim": "true"},
    }
    gate = gates[0]
    for name, url, by_session in (
        ("chat", gate.url, True), ("phone", gate.url, False), ("kiosk", gate.url, True), ("recorded", recorder.url, True),
    ):  # fmt: skip
        attributes = {"backchannel.logout.url": url + PATH, "backchannel.logout.session.required": json.dumps(by_session)}
        client = {"clientId": name, "publicClient": True, "directAccessGrantsEnabled": True}
        keycloak.admin("POST", f"/realms/{REALM}/clients", json=client | {"attributes": attributes, "protocolMappers": [mapper]})


@pytest.fixture
def login(keycloak):
    return lambda user="erin", client="chat": keycloak.login(user, realm=REALM, client=client)


@pytest.fixture
def record(keycloak, recorder, login):
    """Logs in and out again at Keycloak: the tokens, and the logout token that no gate has seen."""

    def log_out():
        tokens = login(client="recorded")
        keycloak.log_out(tokens)
        (logout_token,) = [token for token in recorder.take() if claims(token)["sid"] == claims(tokens.access)["sid"]]
        keycloak.issued.append(logout_token)  # nor may a log ever show it
        return tokens, logout_token

    return log_out


def wait_for_the_next_second(tokens):
    """Times are whole seconds: from now on a logout is later than this login."""
    time.sleep(max(0, claims(tokens.access)["iat"] + 1 - time.time()))


def sign_out(keycloak, tokens):
    """As an administrator does with a user."""
    keycloak.admin("POST", f"/realms/{REALM}/users/{claims(tokens.access)['sub']}/logout")


def test_a_logout_closes_the_sockets_of_that_login_on_every_replica_and_no_other(
    keycloak, daphne, gates, login, sockets, room
):
    told, other = gates
    laptop, phone, frank = login(), login(), login("frank")
    here, there = sockets(told, room, laptop), sockets(other, room, laptop)
    bystanders = [(sockets(told, room, phone), "erin"), (sockets(other, room, phone), "erin"), (sockets(other, room, frank), "frank")]
    with closing_soon(told, other):
        keycloak.log_out(laptop)
        assert end_of(here) == end_of(there) == REVOKED
    for socket, user in bystanders:
        talks(socket, user)
    daphne.wait_until_left(room)

    sid = claims(laptop.access)["sid"]
    audit = told.line(event="revocation", sid=sid)
    assert (audit["by"], audit["closed"], audit["iss"]) == ("backchannel_logout", 1, told.issuer)
    assert audit["logout_jti"] and audit["address"] == "127.0.0.1"
    passed_on = other.line(event="revocation", sid=sid)
    assert (passed_on["by"], passed_on["closed"], passed_on["id"]) == ("redis", 1, audit["id"])
    for gate, socket in ((told, here), (other, there)):
        closed = gate.line(event="session_closed", request_id=socket.request_id)
        assert (closed["code"], closed["reason"], closed["sid"], closed["username"]) == (*REVOKED, sid, "erin")
        # The access token is good for an hour yet, but nowhere here.
        assert refusal(gate, room, laptop.access).reason == "token_revoked"
        page = refusal(gate, room, laptop.access, by_subprotocol, origin=PAGE)
        assert (page.code, page.reason) == REVOKED
        plain = http.get(f"{gate.url}/api/me/", headers=by_header(laptop.access)["headers"])
        assert (plain.status_code, plain.json()["reason"]) == (401, "token_revoked")
        assert opens(gate, room, login().access).identity["x-auth-username"] == "erin"


def test_the_backend_hears_of_no_logout(keycloak, daphne, gates, login):
    keycloak.log_out(login())
    http.post(f"{gates[0].url}/oidc/elsewhere", data={"logout_token": "none"})
    wait_until(lambda: '"POST /oidc/elsewhere" 404' in daphne.output(), "what is posted elsewhere is the backend's", 5)
    assert PATH not in daphne.output()


def test_an_administrator_ends_one_login(keycloak, gates, login, sockets, room):
    told, other = gates
    laptop, phone = login(), login()
    there, stays = sockets(other, room, laptop), sockets(told, room, phone)
    keycloak.admin("DELETE", f"/realms/{REALM}/sessions/{claims(laptop.access)['sid']}")
    assert end_of(there) == REVOKED
    talks(stays, "erin")


def test_of_a_user_whom_an_administrator_signs_out_keycloak_names_one_login_alone(keycloak, recorder, login):
    """So who must be gone at once needs a client without session ids, or a revocation of the user."""
    logins = [login(client="recorded") for _ in range(3)]
    sign_out(keycloak, logins[0])
    (logout_token,) = recorder.take()
    said = claims(logout_token)
    assert said["sid"] in [claims(tokens.access)["sid"] for tokens in logins]
    assert header(logout_token).items() >= {"alg": "RS256", "typ": "logout+jwt"}.items()
    assert (said["aud"], said["typ"], said["events"]) == ("recorded", "Logout", {EVENT: {}})
    assert said["exp"] == said["iat"] + 120


def test_of_a_user_whom_an_administrator_signs_out_one_login_loses_its_sockets(keycloak, gates, login, sockets, room):
    told, other = gates
    logins = [login(), login(), login()]
    by_sid = {claims(tokens.access)["sid"]: [sockets(gate, room, tokens) for gate in gates] for tokens in logins}
    sign_out(keycloak, logins[0])
    lines = wait_until(lambda: [line for line in told.lines(event="revocation") if line.get("sid") in by_sid], "the logout", 5)
    (named,) = [line["sid"] for line in lines]
    assert [end_of(socket) for socket in by_sid.pop(named)] == [REVOKED] * 2
    for stays in sum(by_sid.values(), []):
        talks(stays, "erin")


@pytest.mark.parametrize("by", [Keycloak.log_out, sign_out], ids=["by the user", "by an administrator"])
def test_without_session_ids_a_logout_closes_all_that_the_user_had_before(keycloak, gates, login, sockets, room, by):
    told, other = gates
    one, two, elsewhere, frank = login(client="phone"), login(client="phone"), login(client="chat"), login("frank", "phone")
    lost = [sockets(gate, room, tokens) for gate in gates for tokens in (one, two, elsewhere)]
    stays = sockets(other, room, frank)
    sub = claims(one.access)["sub"]
    done = len(told.lines(event="revocation", sub=sub))  # once for each of these tests
    wait_for_the_next_second(elsewhere)
    by(keycloak, one)
    assert [end_of(socket) for socket in lost] == [REVOKED] * len(lost)
    talks(stays, "frank")
    for gate, source in ((told, "backchannel_logout"), (other, "redis")):
        assert wait_until(lambda: gate.lines(event="revocation", sub=sub, by=source)[done:], "the audit", 5)[-1]["closed"] == 3
    again = login(client="phone")
    for gate in gates:
        assert refusal(gate, room, two.access).reason == "token_revoked"
        talks(sockets(gate, room, again), "erin")


def test_a_logout_from_a_client_that_is_not_listed_closes_nothing(keycloak, gates, login, sockets, room):
    told, _ = gates
    kiosk = login(client="kiosk")
    socket = sockets(told, room, kiosk)
    before = len(told.lines(event="logout_refused"))
    keycloak.log_out(kiosk)
    (refused,) = wait_until(lambda: told.lines(event="logout_refused")[before:], "what Keycloak has posted", 5)
    assert (refused["status"], refused["address"]) == (400, "127.0.0.1") and "aud" in refused["message"]
    talks(socket, "erin")
    assert opens(told, room, kiosk.access)


def assert_refused(gate, logout_token, why):
    request_id = uuid.uuid4().hex
    answer = post(gate, logout_token, request_id)
    assert answer.status_code == 400, why
    assert answer.json()["error"] == "invalid_request" and why in answer.json()["error_description"]
    assert answer.headers["Cache-Control"] == "no-store"
    assert why in gate.line(event="logout_refused", request_id=request_id)["message"]


def altered(token, part):
    """One byte of it is another one."""
    parts = token.split(".")
    old = parts[part][20]
    parts[part] = parts[part][:20] + ("A" if old != "A" else "B") + parts[part][21:]
    return ".".join(parts)


def signed_by_nobody(token):
    return f"{encode(json.dumps(header(token) | {'alg': 'none'}).encode())}.{token.split('.')[1]}."


def signed_by_somebody_else(token):
    """With the name of Keycloak's key."""
    signed = token.rpartition(".")[0]
    key = rsa.generate_private_key(65537, 2048)
    return f"{signed}.{encode(key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256()))}"


def test_what_only_looks_like_a_logout_closes_nothing(gates, login, record, sockets, room):
    tokens, logout_token = record()
    victim = login()
    named = [sockets(gate, room, tokens) for gate in gates]
    stays = sockets(gates[0], room, victim)
    for forged, why in (
        (altered(logout_token, 2), "token_signature"),
        (altered(logout_token, 1), "token_"),
        (altered(logout_token, 0), "token_"),
        (logout_token[:-1], "token_"),
        (with_claims(logout_token, sid=claims(victim.access)["sid"]), "token_signature"),
        (signed_by_somebody_else(logout_token), "token_signature"),
        (signed_by_nobody(logout_token), "token_algorithm"),
        (tokens.access, "typ"),
        (tokens.id, "typ"),
        (tokens.refresh, "token_algorithm"),
    ):
        assert_refused(gates[0], forged, why)
    for socket in (*named, stays):
        talks(socket, "erin")
    # As it is, it is good.
    answer = post(gates[0], logout_token)
    assert (answer.status_code, answer.text, answer.headers["Cache-Control"]) == (200, "", "no-store")
    assert [end_of(socket) for socket in named] == [REVOKED] * 2
    talks(stays, "erin")


@pytest.mark.parametrize("again", [0, 1], ids=["at the same gate", "at the other gate"])
def test_a_logout_that_was_heard_already_closes_nothing(gates, record, sockets, room, again):
    told, other = gates
    tokens, logout_token = record()
    assert post(told, logout_token).status_code == 200
    revocation = told.line(event="revocation", sid=claims(tokens.access)["sid"])["id"]
    assert told.admin("DELETE", f"/revocations/{revocation}").status_code == 204
    other.line(event="revocation_withdrawn", id=revocation)
    socket = sockets(told, room, tokens)
    assert_refused(gates[again], logout_token, "jti was seen before")
    talks(socket, "erin")


@pytest.mark.parametrize(("ahead", "why"), [(150, "it has expired"), (360, "iat is too long ago")])
def test_a_logout_that_comes_too_late_closes_nothing(start_gate, record, sockets, room, ahead, why):
    tokens, logout_token = record()
    with start_gate(realm=REALM, more=listening(TOLD), ahead=ahead) as gate:
        socket = sockets(gate, room, tokens)
        assert_refused(gate, logout_token, why)
        talks(socket, "erin")


def test_a_logout_is_for_those_who_listen_to_that_client(start_gate, record, sockets, room):
    tokens, logout_token = record()
    with start_gate(realm=REALM, more=listening(["chat"])) as gate:
        socket = sockets(gate, room, tokens)
        assert_refused(gate, logout_token, "aud")
        talks(socket, "erin")
