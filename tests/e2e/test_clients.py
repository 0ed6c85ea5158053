"""The client helper in Python, through the real gate: it comes back by the reason it was sent away for."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
import time

import pytest

from parts import ROOT
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
def test_an_expired_token_is_renewed_once_at_once_and_then_backed_off_from(gate, room, told, short, alice, origin):
    old = short()
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


def test_what_the_helper_of_pages_decides():
    if not shutil.which("node"):
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)("no node (Debian: nodejs)")
    done = subprocess.run(["node", "--test", str(ROOT / "clients")], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "# fail 0" in done.stdout and "# pass 0" not in done.stdout, done.stdout + done.stderr
