"""Clients: how each carries its token, what the backend saw of it, how it was refused."""

import json
import uuid
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from sso import encode

PAGE = "https://app.example.com"


def by_header(token):
    return {"headers": [("Authorization", f"Bearer {token}")]}


def by_subprotocol(token):
    return {"subprotocols": ["Bearer", token]}


def by_kubernetes(token):
    return {"subprotocols": [f"base64url.bearer.authorization.k8s.io.{encode(token.encode())}"]}


def by_query(token):
    return {"query": f"token={token}"}


def by_cookie(token):
    # A cookie comes along from any page, so it counts from a listed page only.
    return {"headers": [("Cookie", f"__Host-token={token}")], "origin": PAGE}


CARRIERS = [by_header, by_subprotocol, by_kubernetes, by_query, by_cookie]


@contextmanager
def open_socket(part, path, token=None, by=by_header, *, headers=(), subprotocols=(), query="", origin=None, **options):
    """A WebSocket to the gate, or right to a backend. Its `request_id` finds it in the log."""
    carried = by(token) if token else {}
    query = "&".join(filter(None, [query, carried.get("query")]))
    request_id = uuid.uuid4().hex
    try:
        with connect(
            f"{'wss' if 'ssl' in options else 'ws'}://127.0.0.1:{part.port}{path}" + (f"?{query}" if query else ""),
            additional_headers=[*carried.get("headers", []), *headers, ("X-Request-ID", request_id)],
            subprotocols=[*subprotocols, *carried.get("subprotocols", [])] or None,
            origin=origin or carried.get("origin"),
            proxy=None,
            ping_interval=None,
            **options,
        ) as socket:
            socket.request_id = request_id
            yield socket
    except InvalidStatus as refused:
        refused.request_id = request_id
        raise


class Seen(dict):
    """What a backend saw of a request, as it told us."""

    def all(self, name):
        return [value for key, value in self["headers"] if key.lower() == name]

    @property
    def identity(self):
        """The identity headers, by names as a backend folds them; a repeated one would show as a list."""
        found = {}
        for key, value in self["headers"]:
            folded = key.lower().replace("_", "-")
            if folded.startswith("x-auth-"):
                found[folded] = [found[folded], value] if folded in found else value
        return found


def seen_by(socket):
    """The first message of our backends."""
    return Seen(json.loads(socket.recv(timeout=10)))


def talks(socket, user):
    """Sends to a room of Channels, whoever else is in it, and hears it back."""
    socket.send(json.dumps({"say": "still here"}))
    while json.loads(socket.recv(timeout=5)) != {"by": user, "said": "still here"}:
        pass


def opens(part, path, token=None, by=by_header, **options):
    """Opens a socket, tells what the backend saw, closes it."""
    with open_socket(part, path, token, by, **options) as socket:
        return seen_by(socket)


def end_of(socket, timeout=10):
    """The code and the text of the Close that comes, whatever comes before it."""
    with pytest.raises(ConnectionClosed) as closed:
        while True:
            socket.recv(timeout=timeout)
    assert closed.value.rcvd, "the connection ended without a Close"
    return closed.value.rcvd.code, closed.value.rcvd.reason


@dataclass
class Refusal:
    reason: str
    request_id: str
    status: int | None = None
    code: int | None = None
    problem: dict = field(default_factory=dict)
    headers: dict = field(default_factory=dict)
    text: str = ""


def refusal(part, path, token=None, by=by_header, **options):
    """How a handshake was refused: over HTTP, or accepted only to be closed."""
    try:
        with open_socket(part, path, token, by, **options) as socket:
            with pytest.raises(ConnectionClosed) as closed:
                socket.recv(timeout=10)
            close = closed.value.rcvd
            return Refusal(close.reason, socket.request_id, code=close.code)
    except InvalidStatus as refused:
        answer = refused.response
        assert answer.headers["Content-Type"] == "application/problem+json"
        problem = json.loads(answer.body)
        return Refusal(
            problem["reason"], refused.request_id, answer.status_code,
            problem=problem, headers=answer.headers, text=answer.body.decode(),
        )  # fmt: skip
