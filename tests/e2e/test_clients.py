"""The client helpers, in Python and in a real browser, through the real gate: they come back by the reason that they
were sent away for."""

import asyncio
import json
import shutil
import subprocess
import sys
import time

import pytest

from client import open_socket, seen_by
from parts import ROOT, skip
from sso import claims, wait_until_expired

sys.path.insert(0, str(ROOT / "clients"))
from sidegate import GateSocket, Stopped  # noqa: E402

LIMITS = 'attempts_per_address = "off"\nsessions_per_user = 1'


class Told(list):
    """The states that a client has gone through."""

    def names(self):
        return [state.name for state in self]

    def labels(self):
        return [state.label for state in self if state.name in ("waiting", "stopped")]


class Purse:
    """Hands out these tokens, the next one only where a new one is asked for."""

    def __init__(self, *tokens):
        self.tokens = list(tokens)
        self.asked = []

    async def __call__(self, renew):
        self.asked.append(renew)
        if renew and len(self.tokens) > 1:
            self.tokens.pop(0)
        return self.tokens[0]


def client(gate, path, token, told, **options):
    options = {"base": 0.2, "most": 1.0, "settle": 1.0, "proxy": None} | options
    return GateSocket(f"ws://127.0.0.1:{gate.port}{path}", token, on_state=told.append, **options)


async def first(socket):
    """What the backend saw, which is the first that it sends on a connection."""
    return json.loads(await asyncio.wait_for(anext(socket), 20))


async def until(condition, what, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        await asyncio.sleep(0.02)


def run(talk):
    asyncio.run(asyncio.wait_for(talk, 60))


@pytest.fixture
def told():
    return Told()


@pytest.fixture(scope="module", autouse=True)
def old(keycloak):
    """Taken before all else here, so that it has expired by the time it is needed."""
    return keycloak.login("alice", client="chat-short").access


@pytest.fixture
def short(keycloak):
    """Lives for five seconds."""
    return lambda: keycloak.login("alice", client="chat-short").access


@pytest.mark.parametrize("carrier", ["header", "subprotocol", "query"])
def test_each_carrier_brings_the_token(gate, room, alice, told, carrier):
    async def talk():
        async with client(gate, room, lambda renew: alice.access, told, carrier=carrier, subprotocols=["chat.v1"]) as socket:
            seen = await first(socket)
            assert dict(seen["headers"])["x-auth-username"] == "alice" and seen["subprotocols"] == ["chat.v1"]
            await socket.send(json.dumps({"say": "hello"}))
            assert json.loads(await anext(socket)) == {"by": "alice", "said": "hello"}

    run(talk())
    assert told.names() == ["connecting", "open", "live", "closed"]


def test_a_token_that_runs_out_is_renewed_and_the_socket_comes_back(gate, room, alice, told, short):
    purse = Purse(short(), alice.access)

    async def talk():
        async with client(gate, room, purse, told) as socket:
            await first(socket)
            await first(socket)

    run(talk())
    assert purse.asked == [False, True]
    assert told.names() == ["connecting", "open", "live", "waiting", "connecting", "open", "live", "closed"]
    (waiting,) = (state for state in told if state.name == "waiting")
    assert (waiting.code, waiting.label, waiting.pause) == (4001, "token_expired", 0)
    assert waiting.remedy == "get a new token, then reconnect"


@pytest.mark.parametrize("origin", [None, "https://app.example.com"], ids=["over HTTP", "by a Close"])
def test_an_expired_token_is_renewed_once_at_once_and_then_backed_off_from(gate, room, told, old, alice, origin):
    purse = Purse(old, old, alice.access)
    wait_until_expired(old)

    async def talk():
        async with client(gate, room, purse, told, origin=origin) as socket:
            await first(socket)

    run(talk())
    assert purse.asked == [False, True, True]
    waits = [state for state in told if state.name == "waiting"]
    assert [state.label for state in waits] == ["token_expired"] * 2
    assert waits[0].pause == 0 < waits[1].pause <= 0.2
    assert {(state.status, state.code) for state in waits} == ({(0, 4001)} if origin else {(401, 0)})


@pytest.mark.parametrize("origin", [None, "https://app.example.com"], ids=["over HTTP", "by a Close"])
def test_what_a_new_token_cannot_mend_stops(gate, alice, bob, told, origin):
    async def talk(path, token, label):
        async with client(gate, path, lambda renew: token, told, origin=origin) as socket:
            with pytest.raises(Stopped) as stopped:
                await first(socket)
            with pytest.raises(Stopped):
                await socket.send("hello")
        assert stopped.value.state.label == label and stopped.value.state.remedy in str(stopped.value)

    run(talk("/ws/events/globex/", alice.access, "rule_denied"))
    run(talk("/ws/chat/x/", alice.id, "token_type"))
    run(talk("/nowhere/", alice.access, "route_unknown"))
    assert told.names().count("connecting") == 3 and "waiting" not in told.names()


def test_a_session_that_was_revoked_stops(gate, room, keycloak, told):
    token = keycloak.login("bob").access

    async def talk():
        async with client(gate, room, lambda renew: token, told) as socket:
            await first(socket)
            gate.admin("POST", "/revocations", json={"sid": claims(token)["sid"]}).raise_for_status()
            with pytest.raises(Stopped):
                await first(socket)

    run(talk())
    assert (told[-1].name, told[-1].code, told[-1].label) == ("stopped", 4001, "token_revoked")


def test_an_operators_close_is_backed_off_from_and_the_messages_come_on(gate, room, alice, told):
    async def talk():
        async with client(gate, room, lambda renew: alice.access, told) as socket:
            await first(socket)
            closed = gate.admin("DELETE", "/sessions", params={"jti": claims(alice.access)["jti"]}).json()
            assert closed["closed"] == 1
            await first(socket)

    run(talk())
    assert told.labels() == ["operator_closed"]


def test_a_gate_without_room_is_tried_ever_more_slowly_until_there_is_some(start_gate, room, alice, told):
    with start_gate(limits=LIMITS) as gate:

        async def talk():
            async with client(gate, room, lambda renew: alice.access, Told()) as other:
                await first(other)
                # A page: it is accepted, and only then closed with 4029.
                async with client(gate, room, lambda renew: alice.access, told, origin="https://app.example.com") as socket:
                    await until(lambda: len(told.labels()) == 4, "four refusals")
                    await other.close()
                    await first(socket)

        run(talk())
    assert set(told.labels()) == {"user_sessions_exceeded"}
    assert told.names().count("live") == 1, "to be accepted is not to be let in"
    pauses = [state.pause for state in told if state.name == "waiting"]
    assert all(pause <= bound for pause, bound in zip(pauses, [0.2, 0.4, 0.8, 1.0, 1.0], strict=False))


def test_retry_after_is_honoured(start_gate, room, alice, told):
    with start_gate(limits='attempts_per_address = "1/3s"') as gate:

        async def talk():
            with pytest.raises(Stopped, match="token_type"):
                async with client(gate, room, lambda renew: alice.id, Told()) as bad:
                    await first(bad)
            async with client(gate, room, lambda renew: alice.access, told) as socket:
                await first(socket)

        run(talk())
    waiting = told[1]
    assert (waiting.name, waiting.status, waiting.label) == ("waiting", 429, "attempts_exceeded")
    assert waiting.pause >= 1, "longer than the back-off alone"


def test_a_restart_of_the_gate_is_survived(start_gate, room, alice, told):
    with start_gate() as gate:

        async def talk():
            async with client(gate, room, lambda renew: alice.access, told) as socket:
                await first(socket)
                await asyncio.to_thread(gate.stop)
                await until(lambda: told.labels().count("") >= 1, "a handshake that failed")
                await asyncio.to_thread(gate.start)
                await first(socket)

        run(talk())
    assert told.labels()[0] == "draining" and set(told.labels()[1:]) <= {"", "keys_unavailable", "draining"}


def test_nobody_signed_in_stops_and_a_failing_renewal_is_waited_out(gate, room, alice, told):
    answers = iter([OSError("the issuer is away"), alice.access])

    def token(renew):
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def talk():
        async with client(gate, room, token, told) as socket:
            await first(socket)
        async with client(gate, room, lambda renew: None, told) as socket:
            with pytest.raises(Stopped, match="sign in"):
                await first(socket)

    run(talk())
    assert told[1].meaning == "no token could be had: the issuer is away"
    assert told.names()[-2:] == ["connecting", "stopped"]


# ---- in the browser -------------------------------------------------------------------------------------------

ROUTES = """
[[route]]
path = "/pages/*"
auth = "none"
upstream = {{ url = "{}" }}

[[route]]
path = "/ws/self/{{room}}/"
origin = {{ allow = ["self"] }}
"""
START = """
    const [path, tokens, options] = args;
    const { GateSocket } = await import("/pages/sidegate.mjs");
    const asked = [], told = [], heard = [];
    const socket = new GateSocket(path, async ({ renew }) => {
        asked.push(renew);
        if (renew && tokens.length > 1) tokens.shift();
        return tokens[0];
    }, { base: 200, most: 1000, settle: 1000, ...options });
    socket.addEventListener("state", ({ detail }) => told.push(detail));
    socket.addEventListener("message", ({ data }) => heard.push(JSON.parse(data)));
    Object.assign(window, { socket, asked, told, heard });
"""


@pytest.fixture(scope="module")
def start_site(start_gate, pages):
    """`with start_site(…) as gate`: one that serves pages, too."""
    return lambda **settings: start_gate(more=ROUTES.format(pages.url), **settings)


@pytest.fixture(scope="module")
def site(start_site):
    with start_site() as gate:
        yield gate


@pytest.fixture
def inside(browser, room):
    """`inside(gate, token…)`: a page of this gate's, with a socket."""
    path = room.replace("/chat/", "/self/")

    def start(gate, *tokens, path=path, **options):
        browser.open(f"{gate.url}/pages/plain/").run(START, path, tokens, options)
        return browser

    yield start
    browser.run("window.socket?.close()")


def waits(page):
    return page.run("return told.filter(({ state }) => state === 'waiting')")


@pytest.mark.parametrize("carrier", ["subprotocol", "query"])
def test_a_page_carries_its_token(inside, site, alice, carrier):
    page = inside(site, alice.access, carrier=carrier, protocols=["chat.v1"])
    page.until("heard.length")
    seen = page.run("return { ...heard[0], protocol: socket.protocol }")
    assert dict(seen["headers"])["x-auth-username"] == "alice"
    assert (seen["subprotocols"], seen["protocol"], seen["query"]) == (["chat.v1"], "chat.v1", "")
    assert page.run("return socket.send(JSON.stringify({ say: 'hello' }))") is True
    page.until("heard[1]?.said === 'hello'")
    page.run("socket.close()")
    assert page.run("return [socket.send('x'), ...told.map(({ state }) => state)]") == [False, "connecting", "open", "live", "closed"]


def test_a_page_renews_its_token_and_comes_back(inside, site, alice, short):
    page = inside(site, short(), alice.access)
    page.until("heard.length === 2")
    assert page.run("return asked") == [False, True]
    (waited,) = waits(page)
    assert (waited["code"], waited["label"], waited["pause"]) == (4001, "token_expired", 0)
    assert waited["remedy"] == "get a new token, then reconnect"


def test_a_page_with_an_expired_token_is_not_fooled_by_being_accepted(inside, site, alice, old):
    wait_until_expired(old)
    page = inside(site, old, old, old, alice.access)
    page.until("heard.length")
    assert page.run("return asked") == [False, True, True, True]
    assert page.run("return told.filter(({ state }) => state === 'open').length") == 4
    assert page.run("return told.filter(({ state }) => state === 'live').length") == 1
    first, *others = [wait["pause"] for wait in waits(page)]
    assert first == 0 and 0 < others[0] <= 200 and 0 < others[1] <= 400


@pytest.mark.parametrize(
    ("path", "kind", "label"),
    [("/ws/events/globex/", "access", "origin_denied"), ("/nowhere/", "access", "route_unknown"), ("/ws/self/x/", "id", "token_type")],
)
def test_a_page_stops_where_trying_again_does_not_help(inside, site, alice, path, kind, label):
    page = inside(site, getattr(alice, kind), path=path)
    page.until("told.at(-1)?.state === 'stopped'")
    assert page.run("return [told.at(-1).label, asked.length]") == [label, 1]
    assert page.run("return [told.at(-1).meaning, told.at(-1).remedy].every(Boolean)")


def test_a_page_waits_for_a_gate_that_drains_and_one_that_is_away(inside, start_site, alice):
    with start_site() as gate:
        page = inside(gate, alice.access)
        page.until("heard.length === 1")
        gate.stop()
        page.until("told.filter(({ state, code }) => state === 'waiting' && code === 1006).length >= 2")
        gate.start()
        page.until("heard.length === 2")
        assert waits(page)[0]["label"] == "draining"
        gate.admin("DELETE", "/sessions", params={"all": "true"}).raise_for_status()
        page.until("heard.length === 3")
        assert waits(page)[-1]["label"] == "operator_closed" and waits(page)[-1]["pause"] <= 200


def test_a_page_that_finds_no_room_backs_off_until_there_is_some(inside, start_site, room, alice):
    with start_site(limits=LIMITS) as gate:
        with open_socket(gate, room, alice.access) as other:
            seen_by(other)
            page = inside(gate, alice.access)
            page.until("told.filter(({ state }) => state === 'waiting').length === 4")
        page.until("heard.length")
        assert {wait["label"] for wait in waits(page)} == {"user_sessions_exceeded"}
        assert all(wait["pause"] <= bound for wait, bound in zip(waits(page), [200, 400, 800, 1000], strict=False))


def test_what_the_helper_of_pages_decides():
    if not shutil.which("node"):
        skip("no node (Debian: nodejs)")
    done = subprocess.run(["node", "--test", str(ROOT / "clients" / "sidegate.test.mjs")], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "# fail 0" in done.stdout and "# pass 0" not in done.stdout, done.stdout + done.stderr
