"""What the gate adds to answers and asks of requests: CORS, CSP, security headers, cookies against other
sites, rules in CEL. In front of FastAPI with its own CORS and of Django with its own pages."""

import re
import uuid

import pytest

from client import PAGE, by_cookie, by_header, opens, refusal
from parts import http, wait_until
from sso import claims

EVIL = "https://evil.example"
OLD_PAGE = "https://old.example.com"

POLICIES = """
[security_headers]
strict_transport_security = "max-age=31536000"

[csp]
policy = {{ default-src = ["'self'"], connect-src = ["'self'", "$websocket"], script-src = ["'self'", "$nonce"], frame-ancestors = ["'none'"] }}

[[route]]
path = "/rest/{{item}}"
upstream = {{ url = "{uvicorn}", profile = "generic" }}
cors = {{ allow_credentials = true, expose_headers = ["x-total"] }}

[[route]]
path = "/rest/{{item}}/failing"
auth = "none"
upstream = {{ url = "{uvicorn}", profile = "generic" }}
cors = {{}}

[[route]]
path = "/rest/old"
upstream = {{ url = "{uvicorn}", profile = "generic" }}

[[route]]
path = "/settings/"
origin = {{ allow = ["self", "{page}"] }}

[[route]]
path = "/ws/orgs/{{org_id}}/"
allow = 'params.org_id in claims.organization && claims.email.endsWith("@" + params.org_id + ".example")'

[[route]]
path = "/ws/desk/{{room}}/"
allow = '"admin" in claims.realm_access.roles || (request.origin == "{page}" && request.address == "127.0.0.9")'
"""


@pytest.fixture(scope="module")
def gate(start_gate, uvicorn):
    with start_gate(more=POLICIES.format(uvicorn=uvicorn.url, page=PAGE)) as gate:
        yield gate


def preflight(gate, path, origin, method="POST", headers="authorization"):
    asked = {"Origin": origin, "Access-Control-Request-Method": method, "Access-Control-Request-Headers": headers}
    return http.options(f"{gate.url}{path}", headers=asked)


def cors(answer):
    """What a browser reads of it."""
    return {name: value for name, value in answer.headers.items() if name.startswith("access-control-")}


def names(value):
    return {name.strip().lower() for name in value.split(",")}


# ---- CORS -----------------------------------------------------------------------------------------------------


def test_a_preflight_is_answered_here_and_the_backend_never_hears_of_it(gate, uvicorn):
    answer = preflight(gate, "/rest/preflight", PAGE)
    assert (answer.status_code, answer.content) == (204, b"")
    told = cors(answer)
    assert told["access-control-allow-origin"] == PAGE
    assert told["access-control-allow-credentials"] == "true"
    assert names(told["access-control-allow-methods"]) == {"get", "post"}
    assert names(told["access-control-allow-headers"]) == {"authorization", "content-type"}
    assert told["access-control-max-age"] == "600"
    assert "origin" in names(answer.headers["Vary"])
    # Neither a foreign page, nor the backend's old one, hears a yes.
    for origin in (EVIL, OLD_PAGE, "null"):
        answer = preflight(gate, "/rest/preflight", origin)
        assert (answer.status_code, cors(answer)) == (204, {})
    assert "/rest/preflight" not in uvicorn.output()


def test_the_gates_cors_takes_the_place_of_the_backends(gate, uvicorn, alice):
    headers = dict(by_header(alice.access)["headers"])
    direct = http.get(f"{uvicorn.url}/rest/mine", headers={"Origin": OLD_PAGE})
    assert cors(direct) == {"access-control-allow-origin": OLD_PAGE, "access-control-expose-headers": "X-Old"}
    answer = http.get(f"{gate.url}/rest/mine", headers=headers | {"Origin": PAGE})
    assert answer.json()["user"] == "alice"
    assert cors(answer) == {
        "access-control-allow-origin": PAGE,
        "access-control-allow-credentials": "true",
        "access-control-expose-headers": "x-total",
    }
    assert answer.headers.get_list("Access-Control-Allow-Origin") == [PAGE], "browsers refuse two"
    for origin in ({"Origin": OLD_PAGE}, {"Origin": EVIL}, {}):
        answer = http.get(f"{gate.url}/rest/mine", headers=headers | origin)
        assert (answer.status_code, cors(answer)) == (200, {}), origin
        assert "origin" in names(answer.headers["Vary"]), "a cache must not hand this answer to the page"


def test_a_page_can_read_why_it_was_refused_and_that_the_backend_failed(gate, alice):
    refused = http.get(f"{gate.url}/rest/mine", headers={"Origin": PAGE})
    assert (refused.status_code, refused.json()["reason"]) == (401, "token_missing")
    assert cors(refused)["access-control-allow-origin"] == PAGE
    assert cors(refused)["access-control-allow-credentials"] == "true"
    assert cors(http.get(f"{gate.url}/rest/mine", headers={"Origin": EVIL})) == {}
    # FastAPI's own middleware leaves its 500 without CORS: the page would read "network error".
    failed = http.get(f"{gate.url}/rest/x/failing", headers={"Origin": PAGE})
    assert failed.status_code == 500
    assert cors(failed) == {"access-control-allow-origin": PAGE}


def test_without_a_policy_of_the_gate_cors_stays_the_backends_business(gate, uvicorn, alice):
    answer = preflight(gate, "/rest/old", OLD_PAGE, method="DELETE", headers="accept")
    assert answer.status_code == 200, "no token is asked of a preflight"
    assert cors(answer)["access-control-allow-origin"] == OLD_PAGE
    assert preflight(gate, "/rest/old", PAGE, method="DELETE").status_code == 400, "as CORSMiddleware has it"
    bearer = dict(by_header(alice.access)["headers"])
    answer = http.get(f"{gate.url}/rest/old", headers=bearer | {"Origin": OLD_PAGE})
    assert cors(answer) == cors(http.get(f"{uvicorn.url}/rest/old", headers={"Origin": OLD_PAGE}))
    assert http.get(f"{gate.url}/rest/old", headers={"Origin": OLD_PAGE}).status_code == 401


# ---- CSP and security headers ---------------------------------------------------------------------------------


def policies(answer, name="Content-Security-Policy"):
    """Each policy as its directives."""
    lines = [line for value in answer.headers.get_list(name) for line in value.split(",")]
    return [{words[0]: words[1:] for words in map(str.split, line.split(";"))} for line in lines]


def nonce_of(page):
    (nonce,) = re.findall(r'nonce="([^"]*)"', page.text)
    return nonce


def test_the_nonce_in_djangos_page_is_the_one_that_the_policy_allows_and_another_each_time(gate):
    seen = set()
    for _ in range(3):
        page = http.get(f"{gate.url}/page/", headers={"X-CSP-Nonce": "chosen-by-the-client-1234"})
        (policy,) = policies(page)
        nonce = nonce_of(page)
        assert policy["script-src"] == ["'self'", f"'nonce-{nonce}'"]
        assert policy["connect-src"] == ["'self'", f"ws://127.0.0.1:{gate.port}"]
        assert len(nonce) >= 22, "128 bits"
        seen.add(nonce)
    assert len(seen) == 3 and "chosen-by-the-client-1234" not in seen


def test_a_page_that_has_its_own_nonce_keeps_it_under_the_gates_policy(gate, daphne):
    assert "strict-dynamic" in http.get(f"{daphne.url}/page/own/").headers["Content-Security-Policy"]
    page = http.get(f"{gate.url}/page/own/")
    (policy,) = policies(page)
    assert policy["script-src"] == ["'self'", f"'nonce-{nonce_of(page)}'"]
    assert policy["default-src"] == ["'self'"] and "'strict-dynamic'" not in page.headers["Content-Security-Policy"]


def test_a_policy_that_only_reports_leaves_the_backends_in_force(start_gate):
    with start_gate(more="[csp]\npolicy = { script-src = ['$nonce'] }\nreport_only = true") as gate:
        page = http.get(f"{gate.url}/page/own/")
        nonce = f"'nonce-{nonce_of(page)}'"
        assert policies(page)[0]["script-src"] == ["'strict-dynamic'", nonce]
        assert policies(page, "Content-Security-Policy-Report-Only") == [{"script-src": [nonce]}]


def test_every_answer_wears_them_the_gates_own_refusals_too(gate, alice):
    answers = {
        "a page": http.get(f"{gate.url}/page/"),
        "one that allows frames": http.get(f"{gate.url}/page/own/"),
        "an answer of FastAPI": http.get(f"{gate.url}/rest/mine", headers=by_header(alice.access)["headers"]),
        "a 404": http.get(f"{gate.url}/page/none/"),
        "a 500": http.get(f"{gate.url}/rest/x/failing"),
        "a refusal": http.get(f"{gate.url}/api/me/"),
        "a preflight": preflight(gate, "/rest/mine", PAGE),
    }
    for what, answer in answers.items():
        assert answer.headers.get_list("X-Content-Type-Options") == ["nosniff"], what
        assert answer.headers.get_list("X-Frame-Options") == ["DENY"], what
        assert answer.headers.get_list("Referrer-Policy") == ["strict-origin-when-cross-origin"], what
        assert policies(answer)[0]["frame-ancestors"] == ["'none'"], what
        assert "Strict-Transport-Security" not in answer.headers, "never over plain HTTP"
    refused = refusal(gate, "/ws/chat/lobby/")
    assert refused.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    ("listen", "headers", "websocket"),
    [
        ('public_url = "https://chat.example.com"\ntrusted_proxies = []', {}, "wss://chat.example.com"),
        (
            'trusted_proxies = ["127.0.0.1"]',
            {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "chat.example.org"},
            "wss://chat.example.org",
        ),
    ],
    ids=["public_url", "a trusted proxy"],
)
def test_behind_tls_the_policy_names_the_public_socket_and_https_is_made_strict(
    start_gate, uvicorn, listen, headers, websocket
):
    with start_gate(listen=listen, more=POLICIES.format(uvicorn=uvicorn.url, page=PAGE)) as gate:
        page = http.get(f"{gate.url}/page/", headers=headers)
        assert policies(page)[0]["connect-src"] == ["'self'", websocket]
        assert page.headers["Strict-Transport-Security"] == "max-age=31536000"


def test_a_host_that_would_end_the_source_reaches_no_policy(gate):
    for host in ("chat.example.com; script-src *", "a'b.example", "x,y"):
        answer = http.get(f"{gate.url}/page/", headers={"Host": host})
        (policy,) = policies(answer)
        assert (policy["connect-src"], policy["script-src"][0]) == (["'self'"], "'self'")


# ---- cookies against other sites ------------------------------------------------------------------------------


FORM = "/settings/"


def writes(daphne, method="POST"):
    """How often the backend was told to change something."""
    return daphne.output().count(f"{method} by")


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": EVIL},
        {"Origin": "null"},
        {"Origin": f"{PAGE}.evil.example"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "none"},
        {"Origin": EVIL, "Sec-Fetch-Site": "same-origin"},
        {},
    ],
    ids=lambda headers: " ".join(f"{name} {value}" for name, value in headers.items()) or "neither",
)
@pytest.mark.parametrize("method", ["POST", "DELETE"])
def test_a_cookie_changes_nothing_for_another_site(gate, daphne, alice, headers, method):
    cookie = dict(by_cookie(alice.access)["headers"])
    before = writes(daphne, method)
    request_id = uuid.uuid4().hex
    answer = http.request(method, f"{gate.url}{FORM}", headers=cookie | headers | {"X-Request-ID": request_id})
    assert (answer.status_code, answer.json()["reason"]) == (403, "origin_denied")
    assert writes(daphne, method) == before
    refused = gate.line(event="handshake_refused", request_id=request_id)
    assert (refused["reason"], refused["username"], refused["status"]) == ("origin_denied", "alice", 403)


@pytest.mark.parametrize("origin", ["self", PAGE, None])
def test_a_cookie_of_the_same_site_goes_through_and_the_backend_is_told_who(gate, daphne, alice, origin):
    # Browsers that leave out Origin say by Sec-Fetch-Site where the request comes from.
    own = {"self": {"Origin": gate.url}, PAGE: {"Origin": PAGE}, None: {"Sec-Fetch-Site": "same-origin"}}[origin]
    before = writes(daphne, "POST")
    answer = http.post(f"{gate.url}{FORM}", headers=dict(by_cookie(alice.access)["headers"]) | own, data={"theme": "dark"})
    assert answer.json() == {"changed_by": "alice"}
    wait_until(lambda: writes(daphne, "POST") == before + 1, "Django's own line", 5)


def test_reading_with_a_cookie_and_changing_with_a_header_need_no_origin(gate, alice):
    cookie = dict(by_cookie(alice.access)["headers"])
    assert http.get(f"{gate.url}{FORM}", headers=cookie | {"Origin": EVIL}).status_code == 200
    # No other site can set this header without a preflight.
    bearer = dict(by_header(alice.access)["headers"])
    assert http.post(f"{gate.url}{FORM}", headers=bearer | {"Origin": EVIL}).status_code == 200
    assert http.post(f"{gate.url}{FORM}", headers=bearer).status_code == 200


# ---- rules in CEL ---------------------------------------------------------------------------------------------


def test_an_expression_over_the_path_and_keycloaks_organization_decides(gate, keycloak, alice, bob):
    assert opens(gate, "/ws/orgs/acme/", alice.access).identity["x-auth-username"] == "alice"
    assert opens(gate, "/ws/orgs/globex/", bob.access).identity["x-auth-username"] == "bob"
    for path, token in (("/ws/orgs/globex/", alice.access), ("/ws/orgs/acme/", bob.access), ("/ws/orgs/ac/", alice.access)):
        denied = refusal(gate, path, token)
        assert (denied.status, denied.reason) == (403, "rule_denied")
        by_close = refusal(gate, path, token, origin=PAGE)
        assert (by_close.code, by_close.reason) == (4003, "rule_denied")
    # A claim that is not there is an error in the expression, and an error is a denial.
    without = keycloak.login("alice", scope="openid").access
    assert "organization" not in claims(without)
    assert refusal(gate, "/ws/orgs/acme/", without).reason == "rule_denied"


def test_an_expression_sees_where_a_request_comes_from(gate, alice, bob):
    path = "/ws/desk/lobby/"
    there = {"source_address": ("127.0.0.9", 0)}
    assert opens(gate, path, alice.access)
    assert opens(gate, path, bob.access, origin=PAGE, **there)
    assert refusal(gate, path, bob.access, **there).reason == "rule_denied"
    assert refusal(gate, path, bob.access, origin=PAGE).reason == "rule_denied"
    assert refusal(gate, path, bob.access, headers=[("X-Forwarded-For", "127.0.0.9")], origin=PAGE).reason == "rule_denied"
