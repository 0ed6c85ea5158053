"""What a real Chromium makes of the gate: which scripts run, which sockets open, which answers a page may read."""

import re
import string
import subprocess
from urllib.parse import quote

import pytest

from client import PAGE, refusal
from gate import BINARY
from parts import http

GOOD, EVIL = "app.example.com", "app.example.com.evil.example"
CONFIG = string.Template("""
[csp]
policy = { default-src = ["'none'"], script-src = ["$$nonce"], connect-src = ["'self'", "$$websocket"] }

[[route]]
path = "/pages/*"
auth = "none"
upstream = { url = "$pages" }

[[route]]
path = "/pages/api/"
upstream = { url = "$pages" }
origin = { allow = ["http://$good:$port"] }
cors = { allow_methods = ["GET", "DELETE"], expose_headers = ["x-total"] }

[[route]]
path = "/ws/self/{room}/"
origin = { allow = ["self"] }

[[route]]
path = "/ws/named/{room}/"
origin = { allow = ["http://$good:$port", "http://*.cdn.example:$port"] }

[[route]]
path = "/ws/framed/{room}/"
origin = { allow = ["null"] }
""")
# What a socket comes to: what the backend saw, or the Close, or what the policy has blocked.
SOCKET = """
    const [url, token] = args;
    return await new Promise(done => {
        addEventListener("securitypolicyviolation", ({ effectiveDirective, blockedURI }) => done({ blocked: effectiveDirective, blockedURI }), { once: true });
        const socket = new WebSocket(url, token ? ["Bearer", token] : []);
        socket.onmessage = ({ data }) => { socket.close(1000); done({ seen: JSON.parse(data), protocol: socket.protocol }); };
        socket.onclose = ({ code, reason }) => setTimeout(() => done({ code, reason }), 200);
    });
"""
FETCH = """
    const [url, options] = args;
    try {
        const answer = await fetch(url, options);
        const body = await answer.json();
        return { status: answer.status, body, total: answer.headers.get("x-total"), server: answer.headers.get("x-content-type-options") };
    } catch (error) { return { error: error.name }; }
"""


@pytest.fixture(scope="module")
def gate(start_gate, pages):
    with start_gate(more=CONFIG.substitute(pages=pages.url, good=GOOD, port=pages.port)) as gate:
        yield gate


def socket(browser, gate, room, token, *, host=None, port=None):
    return browser.run(SOCKET, f"ws://{host or '127.0.0.1'}:{port or gate.port}{room}", token)


@pytest.fixture
def room(room):
    """By route: self, named or framed."""
    return lambda kind: room.replace("/ws/chat/", f"/ws/{kind}/")


# ---- scripts and their nonces ---------------------------------------------------------------------------------


@pytest.mark.parametrize("page", ["own", "given"], ids=["the nonce of django-csp", "the nonce of the gate"])
def test_a_script_with_the_nonce_runs_and_one_without_it_is_blocked(browser, gate, page):
    browser.violations()
    browser.open(f"{gate.url}/pages/{page}/")
    assert browser.run("return [window.mine, window.alien ?? null, document.scripts.length]") == [1, None, 2]
    (told,) = browser.violations()
    assert "inline script" in told and "script-src" in told


def test_without_the_gate_django_csp_blocks_by_its_own_policy_and_the_gate_replaces_that(browser, gate, pages):
    own = http.get(f"{pages.url}/pages/own/").headers["Content-Security-Policy"]
    assert "report-uri" in own and "connect-src" not in own
    (ours,) = http.get(f"{gate.url}/pages/own/").headers.get_list("Content-Security-Policy")
    assert "report-uri" not in ours and f"connect-src 'self' ws://127.0.0.1:{gate.port}" in ours
    browser.open(f"{pages.url}/pages/given/")
    assert browser.run("return [window.mine, window.alien]") == [1, True], "without any policy all of it runs"


@pytest.mark.parametrize("page", ["own", "given"])
def test_a_nonce_of_an_earlier_answer_lets_no_script_run(browser, gate, page):
    nonces = []
    for _ in range(3):
        old = f'<script nonce="{nonces[-1]}">window.injected = true</script>' if nonces else ""
        browser.open(f"{gate.url}/pages/{page}/?more={quote(old)}")
        assert browser.run("return [window.mine, window.injected ?? null]") == [1, None]
        assert browser.run("return document.body.querySelectorAll('script').length") == bool(old), "it is in the page"
        nonces.append(browser.run("return document.title"))
        assert browser.violations()
    assert len(set(nonces)) == 3 and all(re.fullmatch(r"[A-Za-z0-9+/_-]{22,}={0,2}", nonce) for nonce in nonces)


def test_a_page_from_the_cache_keeps_the_nonce_that_it_was_stored_with(browser, gate, pages):
    url = f"{gate.url}/pages/stored/"
    browser.open(url)
    first = browser.run("return document.title")
    browser.open(f"{gate.url}/pages/own/").open(url)
    assert "not modified" in pages.output()
    assert browser.run("return [document.title, window.mine, window.alien ?? null]") == [first, 1, None]


# ---- connect-src ----------------------------------------------------------------------------------------------


def test_the_policy_lets_exactly_the_gates_own_socket_through(browser, gate, daphne, room, alice):
    browser.open(f"{gate.url}/pages/own/")
    told = socket(browser, gate, room("self"), alice.access)
    assert dict(told["seen"]["headers"])["x-auth-username"] == "alice"
    assert told["protocol"] == "Bearer"
    # A page that asks for another port, such as the backend's own, and for another name of the same host.
    for host, port in [("127.0.0.1", daphne.port), ("localhost", gate.port), ("evil.example", gate.port)]:
        other = room("self").replace("self", "elsewhere")
        told = socket(browser, gate, other, alice.access, host=host, port=port)
        assert told == {"blocked": "connect-src", "blockedURI": f"ws://{host}:{port}{other}"}
        assert other not in daphne.output() + gate.output()
    assert browser.run(FETCH, f"{daphne.url}/api/echo/", {}) == {"error": "TypeError"}
    assert browser.run(FETCH, f"{gate.url}/api/echo/", {})["status"] == 200


def test_it_is_the_policy_that_keeps_the_page_from_the_backends_port(browser, gate, pages, daphne, room):
    browser.open(pages.at("127.0.0.1"))
    assert "seen" in socket(browser, gate, room("self"), None, port=daphne.port)


def test_a_page_by_another_name_of_the_gate_gets_that_name_in_its_policy(browser, gate, room, alice):
    browser.open(f"http://{GOOD}:{gate.port}/pages/given/")
    assert "seen" in socket(browser, gate, room("self"), alice.access, host=GOOD)
    assert socket(browser, gate, room("self"), alice.access)["blocked"] == "connect-src"


# ---- origins --------------------------------------------------------------------------------------------------


def test_a_foreign_page_reads_4003_and_the_backend_never_hears_of_it(browser, gate, pages, daphne, room, alice):
    for host in ("127.0.0.1", "localhost", "evil.example"):
        browser.open(pages.at(host))
        assert socket(browser, gate, room("self"), alice.access) == {"code": 4003, "reason": "origin_denied"}
        line = gate.lines(event="handshake_refused", origin=f"http://{host}:{pages.port}")[-1]
        assert (line["reason"], line["code"]) == ("origin_denied", 4003)
    assert room("self") not in daphne.output()


@pytest.mark.parametrize("host", [GOOD, "APP.Example.COM", "a.cdn.example", "a.b.cdn.example"])
def test_a_page_of_an_allowed_origin_is_let_in(browser, gate, pages, room, alice, host):
    browser.open(pages.at(host))
    assert "seen" in socket(browser, gate, room("named"), alice.access)


@pytest.mark.parametrize(
    "host", [EVIL, f"evil{GOOD}", "app-example.com", "example.com", "cdn.example", "evilcdn.example", "a.cdn.example.evil.example", f"{GOOD}."]
)
def test_a_page_whose_origin_only_looks_right_is_not(browser, gate, pages, room, alice, host):
    browser.open(pages.at(host))
    assert socket(browser, gate, room("named"), alice.access) == {"code": 4003, "reason": "origin_denied"}


def test_the_right_host_on_another_port_is_another_origin(browser, gate, room, alice):
    browser.open(f"http://{GOOD}:{gate.port}/pages/given/")
    # Same host, but named is for the port of the pages; by its own name, for connect-src would block another.
    assert socket(browser, gate, room("named"), alice.access, host=GOOD) == {"code": 4003, "reason": "origin_denied"}


@pytest.mark.parametrize(
    "origin",
    [
        f"{PAGE}.evil.example", f"{PAGE}:444", f"{PAGE}.", f"{PAGE}/", f"{PAGE}@evil.example", f"https://user@{GOOD}",
        f"http://{GOOD}", f"https://x{GOOD}", f"{PAGE}#", f"{PAGE} https://evil.example", f"{PAGE},https://evil.example",
        "https://app.example.com%00.evil.example", "app.example.com", "null",
    ],
)  # fmt: skip
def test_an_origin_that_no_browser_would_send_is_denied(gate, alice, origin):
    refused = refusal(gate, "/ws/chat/x/", alice.access, origin=origin)
    assert (refused.code, refused.reason) == (4003, "origin_denied")


def test_a_sandboxed_frame_is_nobody_even_in_the_gates_own_page(browser, gate, pages, room, alice):
    frame = """
        const [url, token] = args;
        const frame = Object.assign(document.createElement("iframe"), { sandbox: "allow-scripts" });
        frame.srcdoc = `<script>
            const socket = new WebSocket(${JSON.stringify(url)}, ["Bearer", ${JSON.stringify(token)}]);
            socket.onmessage = ({ data }) => parent.postMessage({ origin, seen: JSON.parse(data) }, "*");
            socket.onclose = ({ code, reason }) => parent.postMessage({ origin, code, reason }, "*");
        <\\/script>`;
        const heard = new Promise(done => addEventListener("message", ({ data }) => done(data), { once: true }));
        document.body.append(frame);
        return await heard;
    """
    browser.open(pages.at(GOOD))
    url = f"ws://127.0.0.1:{gate.port}"
    for kind in ("self", "named"):
        assert browser.run(frame, url + room(kind), alice.access) == {"origin": "null", "code": 4003, "reason": "origin_denied"}
    allowed = browser.run(frame, url + room("framed"), alice.access)
    assert allowed["origin"] == "null" and "seen" in allowed


# ---- CORS -----------------------------------------------------------------------------------------------------


def bearer(token, **options):
    return options | {"headers": {"Authorization": f"Bearer {token}"}}


def test_an_allowed_page_reads_answers_and_refusals(browser, gate, pages, alice):
    browser.open(pages.at(GOOD))
    url = f"{gate.url}/pages/api/"
    told = browser.run(FETCH, url, bearer(alice.access))
    assert (told["status"], told["body"], told["total"]) == (200, {"method": "GET", "user": "alice"}, "3")
    told = browser.run(FETCH, url, {})
    assert (told["status"], told["body"]["reason"]) == (401, "token_missing")
    # No header of its own, so a preflight without Access-Control-Request-Headers.
    told = browser.run(FETCH, url, {"method": "DELETE"})
    assert (told["status"], told["body"]["reason"]) == (401, "token_missing")
    assert browser.run(FETCH, url, bearer(alice.access, method="DELETE"))["body"]["method"] == "DELETE"
    for refused in [bearer(alice.access, method="PUT"), {"method": "PUT"}, {"headers": {"X-Other": "1"}}, bearer(alice.access, credentials="include")]:
        assert browser.run(FETCH, url, refused) == {"error": "TypeError"}, refused
    assert "PUT" not in pages.output()


def test_a_foreign_page_reads_nothing(browser, gate, pages, alice):
    for host in ("evil.example", EVIL):
        browser.open(pages.at(host))
        assert browser.run(FETCH, f"{gate.url}/pages/api/", {}) == {"error": "TypeError"}
        assert browser.run(FETCH, f"{gate.url}/pages/api/", bearer(alice.access)) == {"error": "TypeError"}


def test_a_preflight_without_the_headers_of_one_is_none(gate, pages, alice):
    page = f"http://{GOOD}:{pages.port}"
    url = f"{gate.url}/pages/api/"

    def options(**headers):
        return http.options(url, headers={name.replace("_", "-"): value for name, value in headers.items()})

    asked = {"Origin": page, "Access_Control_Request_Method": "DELETE"}
    answer = options(**asked)
    assert (answer.status_code, answer.headers["Access-Control-Allow-Origin"]) == (204, page)
    for headers in ({}, {"Origin": page}, {"Access_Control_Request_Method": "DELETE"}):
        answer = options(**headers)
        assert (answer.status_code, answer.json()["reason"]) == (401, "token_missing"), headers
    assert "OPTIONS" not in pages.output()


# ---- configuration --------------------------------------------------------------------------------------------


POLICY = re.compile(r"(?m)^policy = .*$")


@pytest.mark.parametrize(
    ("policy", "at"),
    [
        ('{ script-src = ["\'self\'; script-src *"] }', "csp.policy.script-src"),
        ('{ script-src = ["\'self\'\\nSet-Cookie: a=b"] }', "csp.policy.script-src"),
        ('{ script-src = ["\'self\'\\r\\n\\r\\n<script>"] }', "csp.policy.script-src"),
        ('{ script-src = ["\'self\', script-src *"] }', "csp.policy.script-src"),
        ('{ "default-src \'none\'; script-src" = ["*"] }', "csp.policy"),
        ('{ "script-src\\n" = ["*"] }', "csp.policy"),
    ],
)
def test_a_policy_that_would_end_its_directive_or_its_header_is_a_configuration_error(tmp_path, gate, policy, at):
    config = tmp_path / "gate.toml"
    config.write_text(POLICY.sub(lambda _: f"policy = {policy}", gate.config.read_text()))
    checked = subprocess.run([BINARY, "check", "--config", config], capture_output=True, text=True, timeout=20)
    assert checked.returncode == 78
    assert at in checked.stdout + checked.stderr


def test_a_running_gate_refuses_such_a_policy_and_keeps_its_own(gate):
    before = POLICY.search(gate.config.read_text())[0]
    after = before.replace("$nonce", "$nonce; script-src *")
    gate.edit((before, after), result="failure")
    try:
        (policy,) = http.get(f"{gate.url}/pages/own/").headers.get_list("Content-Security-Policy")
        assert "script-src 'nonce-" in policy and "*" not in policy
    finally:
        gate.edit((after, before))
