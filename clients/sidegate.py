"""A WebSocket through sidegate that reconnects by the reason it ended for. Needs `websockets`; see README.md."""

import asyncio
import inspect
import json
import random
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from urllib.parse import quote

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

# label: [close code, what to do, remedy]. Code and remedy are the gate's own words (src/base/reject.rs).
REASONS = {
    "token_missing": [4001, "renew", "send an access token, as Authorization: Bearer or as a subprotocol"],
    "token_malformed": [4001, "stop", "send the access token exactly as the issuer gave it"],
    "token_algorithm": [4001, "stop", "send an access token signed with an algorithm that the gate allows"],
    "token_key_unknown": [4001, "renew", "get a new token: the issuer does not publish the key of this one"],
    "token_signature": [4001, "stop", "send the access token exactly as the issuer gave it"],
    "token_expired": [4001, "renew", "get a new token, then reconnect"],
    "token_not_yet_valid": [4001, "wait", "check the clocks of issuer and gate"],
    "token_issuer": [4001, "stop", "get a token from an issuer that the gate knows"],
    "token_audience": [4001, "stop", "get a token for this service's audience"],
    "token_type": [4001, "stop", "send the access token, not a refresh or ID token"],
    "token_client": [4001, "stop", "get the token through a client that the gate allows"],
    "token_claim_missing": [4001, "stop", "the token lacks a claim that the gate needs, such as exp"],
    "token_revoked": [4001, "stop", "sign in again, then reconnect"],
    "token_ambiguous": [4003, "stop", "send exactly one token, in one carrier"],
    "origin_denied": [4003, "stop", "open the socket from an allowed origin"],
    "address_denied": [4003, "stop", "connect from an allowed address"],
    "rule_denied": [4003, "stop", "the token is valid, but does not grant access to this path"],
    "user_revoked": [4003, "stop", "this user is blocked: ask the operator"],
    "route_unknown": [4003, "stop", "no route of the gate serves this path"],
    "upstream_refused": [4003, "stop", "the backend refused the WebSocket"],
    "attempts_exceeded": [4029, "wait", "too many refused requests from this address: wait, then mend the request"],
    "user_sessions_exceeded": [4029, "wait", "close another session of this user first"],
    "address_sessions_exceeded": [4029, "wait", "close another session from this address first"],
    "message_rate_exceeded": [4029, "wait", "send fewer messages per second"],
    "request_malformed": [0, "stop", "send a request that RFC 9110 and RFC 9112 allow, with a plain path"],
    "host_denied": [0, "stop", "use a host name that the gate serves"],
    "upgrade_malformed": [0, "stop", "send the upgrade as RFC 6455 section 4.1 has it"],
    "upgrade_version": [0, "stop", "use WebSocket version 13"],
    "request_too_large": [0, "stop", "send a shorter request head"],
    "header_timeout": [0, "wait", "send the request head sooner"],
    "frame_malformed": [1002, "wait", "send frames that RFC 6455 section 5 allows"],
    "message_too_big": [1009, "wait", "send smaller messages"],
    "pong_timeout": [4008, "again", "reconnect"],
    "idle_timeout": [4008, "again", "reconnect when there is something to say"],
    "session_too_long": [4008, "again", "reconnect"],
    "write_timeout": [4008, "again", "reconnect"],
    "draining": [1012, "wait", "reconnect: another replica will answer"],
    "operator_closed": [1012, "wait", "reconnect: an operator has closed this session"],
    "sessions_full": [1013, "wait", "try again later"],
    "keys_unavailable": [1013, "wait", "try again: the gate has no current keys of the issuer"],
    "blacklist_unavailable": [1013, "wait", "try again: the gate does not know what is revoked"],
    "upstream_unreachable": [1013, "wait", "try again: the backend does not accept connections"],
    "upstream_malformed": [1013, "wait", "the backend's answer is not one that HTTP or RFC 6455 allows"],
    "upstream_timeout": [1013, "wait", "try again: the backend did not answer in time"],
    "upstream_error": [1013, "wait", "try again: the backend failed"],
    "upstream_lost": [1013, "wait", "reconnect: the backend ended the connection without a Close"],
    "internal": [1011, "wait", "tell the operator of the gate"],
}

# What a close code says by itself.
MEANINGS = {
    1000: "closed as wished",
    1001: "the other side is leaving",
    1002: "a frame was not as RFC 6455 has it",
    1003: "such data is not taken",
    1005: "closed without a code",
    1006: "no Close arrived: the connection broke, or the handshake was refused over HTTP, which no page can read",
    1007: "a text was not UTF-8",
    1008: "against the rules of the other side",
    1009: "a message was too big",
    1011: "the other side failed",
    1012: "the gate lets go of this session: a restart, or an operator",
    1013: "not to be had right now",
    4001: "the token is not good, or no longer",
    4003: "not allowed; trying again does not help",
    4008: "silent, idle, slow or old for too long",
    4029: "too many attempts, sessions or messages",
}

JITTER = 0.25


@dataclass(frozen=True)
class State:
    """`name` is connecting, open (though the gate may still refuse by a Close), live (it has been used), waiting
    (for `pause` seconds), stopped (by a reason that trying again does not help against) or closed (by close())."""

    name: str
    code: int = 0
    status: int = 0
    label: str = ""
    meaning: str = ""
    remedy: str = ""
    pause: float = 0.0


class Stopped(Exception):
    """Trying again does not help; `state` says why."""

    def __init__(self, state):
        parts = (state.code or state.status, state.label, state.remedy or state.meaning)
        super().__init__(" ".join(str(part) for part in parts if part))
        self.state = state


@dataclass(frozen=True)
class End:
    """How a connection ended, or why there is none: `status` where the handshake was refused over HTTP."""

    code: int = 1006
    label: str = ""
    status: int = 0
    retry_after: float = 0.0
    meaning: str = ""


def _by_code(code):
    """renew = reconnect at once with a new token, again = reconnect at once, wait = back off, stop."""
    known = {4001: "renew", 4008: "again", 4029: "wait"}
    return known.get(code, "stop" if code >= 3000 or code in (1000, 1003, 1007, 1008, 1010) else "wait")


def _by_status(status):
    if status == 401:
        return "renew"
    return "wait" if status in (408, 425, 429) or status >= 500 else "stop"


def decide(end, renewed=False, settled=True):
    """What to do about an end, and whether the next token must be a new one. `renewed`: this one was; `settled`: the
    socket was in use before. The label counts before the code, for [refuse.codes] may have changed that."""
    if end.label in REASONS:
        wish = REASONS[end.label][1]
    else:
        wish = _by_status(end.status) if end.status else _by_code(end.code)
    in_vain = (wish == "renew" and renewed) or (wish == "again" and not settled)
    return "wait" if in_vain else wish, wish == "renew"


def back_off(failures, base=1.0, most=30.0, rand=random.random):
    """Seconds of exponential back-off with full jitter, after so many failures in a row."""
    return rand() * min(most, base * 2 ** min(failures, 30))


def explain(end):
    """The same as a State has it, for people to read."""
    meaning = end.meaning or (f"refused with HTTP status {end.status}" if end.status else MEANINGS.get(end.code, "a code of the backend's own"))
    remedy = REASONS[end.label][2] if end.label in REASONS else ""
    return {"code": 0 if end.status else end.code, "status": end.status, "label": end.label, "meaning": meaning, "remedy": remedy}


def _refused(response):
    """An answer over HTTP; the gate's own are problem JSON with the label as `reason`."""
    label = ""
    with suppress(ValueError, AttributeError):
        label = str(json.loads(response.body or b"").get("reason", ""))
    return End(label=label, status=response.status_code, retry_after=_seconds(response.headers.get("Retry-After", "")))


def _seconds(retry_after):
    with suppress(ValueError):
        return float(int(retry_after))
    with suppress(ValueError, TypeError):
        return max(0.0, (parsedate_to_datetime(retry_after) - datetime.now(timezone.utc)).total_seconds())
    return 0.0


class GateSocket:
    """Connects, and again until it is told to stop:

        async with GateSocket(url, token) as socket:
            await socket.send("hello")
            async for message in socket:
                ...

    `token(renew)` gives a token, or an awaitable of one; with `renew` the last one was refused, so a kept one will not
    do. Without a token, nobody being signed in, it stops. An error that it raises is a reason to wait.
    `carrier` is header, subprotocol or query; `subprotocols` are your own; `on_state` hears each State; `settle` is how
    many seconds a socket without messages must last to count. What else is given goes to websockets' `connect`.
    """

    def __init__(
        self, url, token, *, carrier="header", subprotocols=(), parameter="token", on_state=None,
        base=1.0, most=30.0, settle=5.0, **options,
    ):  # fmt: skip
        self._url, self._token, self._options = url, token, options
        self._carrier, self._subprotocols, self._parameter = carrier, list(subprotocols), parameter
        self._on_state, self._base, self._most, self._patience = on_state, base, most, settle
        self._task = self._opened = self._current = self._reading = None
        self._settled = False
        self._failures = 0
        self.state = State("closed")

    async def __aenter__(self):
        self._opened = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_):
        await self.close()

    def __aiter__(self):
        return self

    async def __anext__(self):
        """The next message, of whichever connection. Ends with close() or the backend's 1000, else raises Stopped."""
        try:
            self._reading = self._reading or await self._connection()
            while True:
                try:
                    message = await self._reading.recv()
                    if self._reading is self._current:
                        self._settle()
                    return message
                except ConnectionClosed:
                    self._reading = await self._connection(after=self._reading)
        except Stopped as stopped:
            if stopped.state.code == 1000 or stopped.state.name == "closed":
                raise StopAsyncIteration from None
            raise

    async def send(self, message):
        """Waits for a connection. Nothing is kept for the next one: what was under way as one ended may be lost."""
        socket = await self._connection()
        while True:
            try:
                return await socket.send(message)
            except ConnectionClosed:
                socket = await self._connection(after=socket)

    async def close(self, code=1000, reason=""):
        """Also the end of `async with`."""
        if self.state.name in ("stopped", "closed"):
            return
        socket = self._opened.result() if self._opened.done() else None
        self._tell("closed", code=code, label=reason)
        self._task.cancel()
        await asyncio.wait([self._task])
        if socket:
            await socket.close(code, reason)

    async def _connection(self, after=None):
        """The one in force, once it is another than `after`."""
        while True:
            socket = await asyncio.shield(self._opened)
            if socket is None:
                if not self._task.cancelled():
                    self._task.result()
                raise Stopped(self.state)
            if socket is not after:
                return socket
            await asyncio.sleep(0)

    async def _run(self):
        renew = False
        try:
            while renew is not None:
                end = await self._once(renew)
                renew = await self._after(end, renew) if end else None
        finally:
            if self._opened.done():
                self._opened = asyncio.get_running_loop().create_future()
            self._opened.set_result(None)

    async def _once(self, renew):
        """From the token to the end of its connection, which it gives."""
        self._settled = False
        self._tell("connecting")
        try:
            token = self._token(renew)
            token = await token if inspect.isawaitable(token) else token
        except Exception as error:
            return End(code=0, meaning=f"no token could be had: {error}")
        if not token:
            self._tell("stopped", meaning="there is no token", remedy="sign in")
            return None
        try:
            socket = await self._dial(token)
        except InvalidStatus as refused:
            return _refused(refused.response)
        except (OSError, EOFError, InvalidHandshake) as error:
            return End(meaning=f"the handshake failed: {error}")
        self._tell("open")
        self._current = socket
        self._opened.set_result(socket)
        closed = asyncio.ensure_future(socket.wait_closed())
        await asyncio.wait([closed], timeout=self._patience)
        if not closed.done():
            self._settle()
        await closed
        self._opened = asyncio.get_running_loop().create_future()
        return End(socket.close_code, socket.close_reason or "")

    async def _dial(self, token):
        options = dict(self._options)
        url, subprotocols = self._url, list(self._subprotocols)
        if self._carrier == "header":
            options["additional_headers"] = [*dict(options.get("additional_headers") or {}).items(), ("Authorization", f"Bearer {token}")]
        elif self._carrier == "subprotocol":
            subprotocols += ["Bearer", token]
        else:
            url += f"{'&' if '?' in url else '?'}{quote(self._parameter)}={quote(token)}"
        return await connect(url, subprotocols=subprotocols or None, **options)

    async def _after(self, end, renewed):
        """Waits as long as it must; whether the next token must be a new one, None if there is to be no next."""
        action, renew = decide(end, renewed and not self._settled, self._settled)
        if action == "stop":
            self._tell("stopped", **explain(end))
            return None
        # Two that close each other's session, the oldest, must not take turns ever faster.
        code = REASONS[end.label][0] if end.label in REASONS else end.code
        if self._settled and code != 4029:
            self._failures = 0
        pause = {"renew": 0.0, "again": random.random() * JITTER}.get(action)
        if pause is None:
            pause = end.retry_after + back_off(self._failures, self._base, self._most)
            self._failures += 1
        self._tell("waiting", **explain(end), pause=pause)
        await asyncio.sleep(pause)
        return renew

    def _settle(self):
        if not self._settled:
            self._settled = True
            self._tell("live")

    def _tell(self, name, **what):
        self.state = State(name, **what)
        if self._on_state:
            self._on_state(self.state)
