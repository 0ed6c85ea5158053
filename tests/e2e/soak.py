"""Ten minutes of real time, in a thread beside all other tests. Its parts are its own, for other tests stop and
start theirs."""

import json
import threading
import time
from contextlib import ExitStack
from datetime import datetime

from websockets.exceptions import ConnectionClosed

from client import by_header, open_socket, seen_by
from gate import Gate
from parts import Daphne, http, wait_until
from sso import Keycloak, claims

LENGTH = 600
EVERY = 50  # of the 60 seconds that a token of this realm lives
LEEWAY = 1  # of gate.toml
# What the roles of a user decide here: the rule, on /ws/chat/ a header that the backend was told, or nothing.
ROUTES = """
[[route]]
path = "/ws/crew/{room}/"
roles = ["crew"]
identity = { headers = { X-Auth-Username = "preferred_username" } }

[[route]]
path = "/ws/plain/{room}/"
identity = { headers = { X-Auth-Username = "preferred_username" } }
"""


class Held:
    """A socket that is listened to until it ends: what it heard, when it ended, and how."""

    def __init__(self, stack, gate, kind, token):
        self.gate = gate
        self.filter = {"sub": claims(token)["sub"], "route": f"/ws/{kind}/{{room}}/"}
        self.socket = stack.enter_context(open_socket(gate, f"/ws/{kind}/soak/", token))
        self.opened = time.time()
        self.request_id = self.socket.request_id
        seen_by(self.socket)
        self.heard = []
        self.ended = self.close = None
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self):
        try:
            while True:
                self.heard.append(json.loads(self.socket.recv())["said"])
        except ConnectionClosed as closed:
            self.ended = time.time()
            self.close = (closed.rcvd.code, closed.rcvd.reason) if closed.rcvd else (1006, "")

    def talks(self, text):
        self.socket.send(json.dumps({"say": text}))
        wait_until(lambda: text in self.heard, f"the echo of {text}", 5)

    def lives_by(self, token):
        """Its row in the list of sessions, once that says that it is good until the end of this token or later."""

        def row():
            rows = self.gate.sessions(**self.filter)
            ends = [datetime.fromisoformat(row["expires_at"]).timestamp() for row in rows]
            return rows[0] | {"expires_at": ends[0]} if ends and ends[0] >= claims(token)["exp"] else None

        return wait_until(row, f"{self.filter} is prolonged", 5)


class Soak(threading.Thread):
    """Dave renews his token for ten minutes. Carol does so for a while, and loses her role meanwhile."""

    def __init__(self, logs):
        super().__init__(name="soak", daemon=True)
        self.logs = logs
        self.interrupted = threading.Event()
        self.failure = None
        self.shown = []  # Dave's tokens, each with the row of his session after that

    def run(self):
        try:
            with (
                Keycloak(self.logs, realms=["brief"]) as keycloak,
                Daphne(self.logs) as daphne,
                Gate(self.logs, keycloak, daphne, daphne, realm="brief", more=ROUTES) as self.gate,
                ExitStack() as sockets,
            ):
                self.soak(sockets, keycloak)
        except BaseException as failure:
            self.failure = failure

    def soak(self, sockets, keycloak):
        dave, carol = (keycloak.login(user, realm="brief", scope="openid") for user in ("dave", "carol"))
        self.first = dave.access
        self.kept = Held(sockets, self.gate, "chat", dave.access)
        self.ruled, self.told, self.free = (Held(sockets, self.gate, kind, carol.access) for kind in ("crew", "chat", "plain"))
        turn = 0
        while claims(dave.access)["exp"] < self.kept.opened + LENGTH:
            turn += 1
            self.pause(self.kept.opened + turn * EVERY)
            dave = keycloak.renew(dave)
            # Once where a token is required; else in passing, on a path that no route names.
            self.show(dave, "/api/me/" if turn == 1 else "/api/echo/")
            self.shown.append((dave.access, self.kept.lives_by(dave.access)))
            self.kept.talks(f"turn {turn}")
            if turn <= 3:
                carol = keycloak.renew(carol)
                self.show(carol, "/api/echo/")
                self.free.lives_by(carol.access)
            if turn == 1:
                self.with_role = carol.access
                keycloak.take_role("brief", "carol", "crew")
        self.without_role = carol.access
        wait_until(lambda: self.interrupted.is_set() or self.kept.close, "the end of the last token", 60 + LEEWAY + 10)
        self.prolonged, self.refused = (
            self.gate.metric("websocket_extensions_total", result=result) for result in ("extended", "refused")
        )

    def show(self, tokens, path):
        """A plain request of the page."""
        answer = http.get(f"{self.gate.url}{path}", headers=by_header(tokens.access)["headers"])
        assert answer.status_code == 200, answer.text

    def pause(self, until):
        if self.interrupted.wait(max(0, until - time.time())):
            raise InterruptedError("there is nobody who waits for it")

    def interrupt(self):
        """Ends it, if it has not ended, and with it all its parts."""
        self.interrupted.set()
        self.join(60)

    def finished(self):
        """Waits for its end; what has failed in it fails here."""
        self.join()
        if self.failure:
            raise self.failure
        return self
