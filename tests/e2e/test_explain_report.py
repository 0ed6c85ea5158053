"""What an operator asks the program itself: why is this token refused, and whom would this route refuse?"""

import json
import re
import subprocess
import time
from contextlib import ExitStack

import pytest

from client import PAGE, by_header, open_socket, opens, refusal, seen_by
from gate import BINARY, tokens_in
from parts import Mount, http, wait_until
from sso import claims, wait_until_expired, with_claims

STRANGER = "https://new.example.com"

ROUTES = """
[log]
requests = true

[blacklist]
file = "{blacklist}"

[[issuer]]
url = "{other}"
audiences = ["billing"]

[[route]]
path = "/ws/trial/{{org_id}}/"
mode = "shadow"
origin = {{ allow = ["{page}"] }}
claims = {{ organization = "{{org_id}}" }}

[[route]]
path = "/ws/quiet/{{room}}/"
mode = "shadow"

[[route]]
path = "/api/echo/"
mode = "shadow"
auth = "required"

[[route]]
path = "/ws/orgs/{{org_id}}/"
allow = 'params.org_id in claims.organization'
"""


def sidegate(*arguments, stdin=""):
    command = [str(BINARY), *map(str, arguments)]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=30)


@pytest.fixture(scope="module")
def outlived(keycloak):
    """A token that ends while its socket stays open, and is refused ever after."""
    return keycloak.login("bob", client="chat-short").access


@pytest.fixture(scope="module")
def thrown_out(keycloak):
    """A login of alice's that stands in the blacklist file."""
    return keycloak.login("alice").access


@pytest.fixture(scope="module")
def gate(start_gate, keycloak, thrown_out, tmp_path_factory):
    said = claims(thrown_out)
    blacklist = Mount(tmp_path_factory.mktemp("blacklist") / "mount", "blacklist", f"sid {said['sid']} {said['iss']}\n")
    more = ROUTES.format(blacklist=blacklist.path, other=keycloak.issuer("other"), page=PAGE)
    with start_gate(more=more) as gate:
        yield gate


def line_of(gate, text, after=""):
    """The number of the line that begins so, in the part of the file from `after` on."""
    whole = gate.config.read_text()
    start = whole.index(f"\n{text}", whole.index(after)) + 1
    return whole.count("\n", 0, start) + 1


# ---- report ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page(gate, keycloak, alice, bob, outlived):
    """What `report` says of a day on routes in shadow mode, all of it by real clients."""
    path = "/ws/trial/{}/".format
    with ExitStack() as sockets:
        socket = sockets.enter_context(open_socket(gate, path("globex"), outlived))
        seen_by(socket)
        for visit in (
            (path("acme"), alice.access),
            (path("globex"), bob.access),
            (path("globex"), alice.access),  # rule_denied
            (path("acme"), bob.access),  # rule_denied
            (path("acme"), bob.access),  # rule_denied
            (path("acme"),),  # token_missing
            (path("acme"), keycloak.login("alice", client="billing").access),  # token_audience
            ("/ws/quiet/lobby/", alice.access),
        ):
            opens(gate, *visit)
        opens(gate, path("acme"), alice.access, origin=PAGE)
        opens(gate, path("acme"), alice.access, origin=STRANGER)  # origin_denied
        # Not shadow: a refusal that everybody has heard of is no news.
        refusal(gate, "/ws/events/globex/", alice.access)
        assert http.get(f"{gate.url}/api/echo/").status_code == 200
        assert http.get(f"{gate.url}/api/echo/", headers=by_header(alice.access)["headers"]).status_code == 200
        wait_until_expired(outlived)
        time.sleep(0.3)
        socket.send(json.dumps({"say": "nobody closes me"}))
        assert "nobody closes me" in socket.recv(timeout=5)
    wait_until(lambda: gate.lines(event="session_closed", request_id=socket.request_id), "the last line", 5)
    wait_until(lambda: len(gate.lines(event="request")) == 2, "the lines of the requests", 5)
    ran = sidegate("report", "--config", gate.config, gate.log)
    assert (ran.returncode, ran.stderr) == (0, "")
    return ran.stdout


def rows(page, heading):
    """The table below a heading: reason → (count, users, who)."""
    table = page[page.index(heading) :].split("\n\n")[1].splitlines()[1:]
    cells = [re.split(r" {2,}", line.strip()) for line in table]
    return {reason: (int(count), users, who) for reason, count, _, users, _, _, who in cells}


HEADING = "7 of 10 sessions on /ws/trial/{org_id}/ would have been refused or closed"


def test_report_counts_who_would_have_been_refused_and_why(page):
    assert rows(page, HEADING) == {
        "rule_denied": (3, "2", "alice, bob"),
        "origin_denied": (1, "1", f"origin {STRANGER}"),
        "token_audience": (1, "1", "client billing"),
        "token_expired": (1, "1", "bob"),
        "token_missing": (1, "–", "address 127.0.0.1"),
    }
    assert "0 of 1 session on /ws/quiet/{room}/ would have been refused\n" in page
    assert rows(page, "1 of 2 requests on /api/echo/ would have been refused") == {"token_missing": (1, "–", "address 127.0.0.1")}
    assert "/ws/events/" not in page


def test_report_names_the_line_that_decides_and_what_would_mend_it(gate, page):
    told = page[page.index(HEADING) :]
    trial = "/ws/trial/"
    for reason, number, value, mended_by in (
        ("rule_denied", line_of(gate, "claims", trial), '"{org_id}"', "give these users at the issuer what the route asks for"),
        ("origin_denied", line_of(gate, "origin", trial), PAGE, f'add "{STRANGER}" to origin.allow of this [[route]]'),
        ("token_audience", line_of(gate, "audiences"), '["chat"]', "give them an audience mapper at the issuer"),
    ):
        decides, mends = told[told.index(f"\n  {reason}\n") :].splitlines()[2:4]
        assert decides.startswith(f"    {gate.config}:{number}: ") and value in decides
        assert mended_by in mends
    assert "outlived their token" in told


def test_what_report_proposes_mends_it(start_gate, page, alice):
    proposed = re.search(rf'add ("{re.escape(STRANGER)}") to origin.allow of this', page)[1]
    trial = next(route for route in ROUTES.split("\n\n") if "/ws/trial/" in route).replace('mode = "shadow"\n', "")
    mended = trial.format(page=PAGE).replace(f'"{PAGE}"', f'"{PAGE}", {proposed}')
    with start_gate(more=mended) as gate:
        assert opens(gate, "/ws/trial/acme/", alice.access, origin=STRANGER)
        assert refusal(gate, "/ws/trial/acme/", alice.access, origin="https://evil.example").reason == "origin_denied"


def test_report_reads_standard_input_and_works_without_a_configuration(gate, page, tmp_path):
    log = gate.output()
    piped = sidegate("report", "--config", gate.config, stdin=log)
    assert (piped.returncode, piped.stdout) == (0, page)
    # As a container runtime hands it on, in two files, with lines of others between.
    half = len(log.splitlines()) // 2
    files = [tmp_path / name for name in ("yesterday", "today")]
    for file, lines in zip(files, (log.splitlines()[:half], log.splitlines()[half:])):
        file.write_text("".join(f"2026-03-01T09:30:16.995Z stdout F {line}\nwhat others say\n" for line in lines))
    elsewhere = sidegate("report", *files)
    assert elsewhere.returncode == 0
    assert rows(elsewhere.stdout, HEADING) == rows(page, HEADING)
    assert "[origin] allow" in elsewhere.stdout and "with --config FILE" in elsewhere.stdout
    assert tokens_in(page + elsewhere.stdout, gate.keycloak) == []


# ---- explain --------------------------------------------------------------------------------------------------


def explain(gate, token, path, *more):
    """The exit code, the checks as (outcome, rest), and the verdict."""
    given = ["--token", "-"] if token else []
    ran = sidegate("explain", "--config", gate.config, *given, "--path", path, *more, stdin=f"{token}\n")
    assert ran.stderr == ""
    assert tokens_in(ran.stdout, gate.keycloak) == [], "a token is never shown"
    checks, _, rest = ran.stdout.partition("\n\n")
    steps = [re.fullmatch(r"(passed|FAILED)  (\w.*)", line) for line in checks.splitlines()]
    assert all(steps), checks
    return ran.returncode, [(step[1], step[2]) for step in steps], rest.splitlines()[0]


# Who asks for what, what for, and which line of the file decides it: a key, and the path of the route that it stands in.
DENIED = {
    "no token": ("token_missing", "/ws/chat/lobby/", lambda *_: "", ("path", "/ws/chat/{room}/")),
    "half a token": ("token_malformed", "/ws/chat/lobby/", lambda _, alice, __: alice.access[:300], ("from", "")),
    "an expired token": ("token_expired", "/ws/chat/lobby/", None, ("leeway", "")),
    "a token for another audience": (
        "token_audience", "/ws/chat/lobby/", lambda keycloak, *_: keycloak.login("alice", client="billing").access,
        ("audiences", ""),
    ),
    "a refresh token": ("token_algorithm", "/ws/chat/lobby/", lambda _, alice, __: alice.refresh, ("algorithms", "")),
    "changed claims": (
        "token_signature", "/ws/chat/lobby/", lambda _, alice, __: with_claims(alice.access, sub="root"), ("algorithms", ""),
    ),
    "a role that is missing": ("rule_denied", "/ws/staff/lobby/", lambda _, __, bob: bob.access, ("roles", "/ws/staff/")),
    "another organization": ("rule_denied", "/ws/events/acme/", lambda _, __, bob: bob.access, ("claims", "/ws/events/")),
    "an expression that does not hold": ("rule_denied", "/ws/orgs/acme/", lambda _, __, bob: bob.access, ("allow", "/ws/orgs/")),
}  # fmt: skip


@pytest.mark.parametrize("case", DENIED)
def test_explain_says_what_the_gate_says_and_which_line_decides_it(gate, keycloak, alice, bob, outlived, case):
    reason, path, make, (key, after) = DENIED[case]
    token = make(keycloak, alice, bob) if make else outlived
    if token is outlived:
        wait_until_expired(token)
    elif token:
        keycloak.issued.append(token)
    assert refusal(gate, path, token).reason == reason
    code, steps, verdict = explain(gate, token, path)
    assert code == 1
    assert verdict.startswith(f"denied: {reason} (")
    *passed, (outcome, last) = steps
    assert {one for one, _ in passed} == {"passed"}
    assert outcome == "FAILED"
    if case == "no token":  # nobody has written that one is needed
        assert last.endswith('route[1].auth = "required" (default)')
    else:
        assert f"{key} = " in last and f"({gate.config}:{line_of(gate, key, after)})" in last


def test_explain_lets_in_whom_the_gate_lets_in_and_shows_each_check(gate, alice):
    path = "/ws/events/acme/"
    assert opens(gate, path, alice.access, origin=PAGE)
    code, steps, verdict = explain(gate, alice.access, path, "--origin", PAGE)
    assert (code, verdict) == (0, "allowed")
    assert {outcome for outcome, _ in steps} == {"passed"}
    checked = [what.partition(":")[0] for _, what in steps]
    line = ["route", "address", "origin", "token", "form", "issuer", "signature", "claims", "time", "audience", "type", "client", "rule"]
    assert checked == [*line, "blacklist"], "in the order of a handshake"
    # A token as an argument, for whoever does not mind the list of processes.
    ran = sidegate("explain", "--config", gate.config, "--token", alice.access, "--path", path)
    assert ran.returncode == 0 and tokens_in(ran.stdout + ran.stderr, gate.keycloak) == []


def test_explain_knows_pages_addresses_and_paths(gate, alice):
    code, steps, verdict = explain(gate, alice.access, "/ws/chat/lobby/", "--origin", STRANGER)
    assert (code, len(steps)) == (1, 3), "the token is not looked at"
    assert verdict.startswith("denied: origin_denied") and f":{line_of(gate, 'allow', '[origin]')})" in steps[-1][1]
    code, steps, _ = explain(gate, alice.access, "/ws/partner/lobby/", "--origin", "https://partner.example.com")
    assert code == 0 and "origin again" in steps[-2][1], "the web origins of the client at Keycloak"
    code, _, verdict = explain(gate, alice.access, "/ws/nowhere/lobby/", "--peer", "198.51.100.7")
    assert code == 1 and verdict.startswith("denied: route_unknown")


def test_explain_reads_the_blacklist_file(gate, keycloak, thrown_out):
    assert refusal(gate, "/ws/chat/lobby/", thrown_out).reason == "token_revoked"
    code, steps, verdict = explain(gate, thrown_out, "/ws/chat/lobby/")
    assert code == 1 and verdict.startswith("denied: token_revoked")
    assert f"({gate.config}:{line_of(gate, 'file')})" in steps[-1][1]
    assert explain(gate, keycloak.login("alice").access, "/ws/chat/lobby/")[0] == 0


def test_explain_tells_what_a_shadow_route_lets_pass(gate, alice):
    code, steps, verdict = explain(gate, alice.access, "/ws/trial/globex/")
    assert code == 0
    assert verdict == "allowed: the route is in shadow mode; it would be refused for rule_denied"
    assert [what.partition(":")[0] for outcome, what in steps if outcome == "FAILED"] == ["rule"]


def test_explain_names_the_line_of_the_issuer_that_the_token_is_from(gate, keycloak):
    token = keycloak.login("mallory", realm="other").access
    assert refusal(gate, "/ws/chat/lobby/", token).reason == "token_audience"
    code, steps, verdict = explain(gate, token, "/ws/chat/lobby/")
    assert code == 1 and verdict.startswith("denied: token_audience")
    second = line_of(gate, "audiences", f'url = "{keycloak.issuer("other")}"')
    assert f'audiences = ["billing"] ({gate.config}:{second})' in steps[-1][1]


def test_explain_tells_a_bad_configuration_from_a_denial(gate, tmp_path, alice):
    broken = tmp_path / "gate.toml"
    broken.write_text(gate.config.read_text().replace("RS256", "HS256"))
    ran = sidegate("explain", "--config", broken, "--token", "-", "--path", "/ws/chat/lobby/", stdin=alice.access)
    assert (ran.returncode, ran.stdout) == (78, "")
    assert "algorithms" in ran.stderr
    assert sidegate("explain", "--tokens", "-").returncode == 64
