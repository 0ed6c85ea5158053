#!/usr/bin/env python3
"""Asks the dashboard's socket with four tokens, valid, expired, invalid, missing, and prints what it was told.
Exit code 0 if the valid one alone was let in. Needs websockets; `--help` names what it can be told."""

import argparse
import base64
import json
import sys
import time
import urllib.parse
import urllib.request

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect


def log_in(issuer, client, user, password):
    form = {"grant_type": "password", "client_id": client, "username": user, "password": password, "scope": "openid"}
    request = urllib.request.Request(f"{issuer}/protocol/openid-connect/token", urllib.parse.urlencode(form).encode())
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30) as answer:
        return json.load(answer)["access_token"]


def claims(token):
    payload = token.split(".")[1]
    return json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))


def tampered(token):
    """The same with one byte of its signature changed."""
    signed, _, signature = token.rpartition(".")
    return f"{signed}.{'B' if signature[0] == 'A' else 'A'}{signature[1:]}"


def ask(socket, kind):
    socket.send(json.dumps({"type": kind}))
    return json.loads(socket.recv(timeout=10))


def told(url, token):
    """Whether it was let in, and what it heard."""
    query = f"?token={token}" if token else ""
    try:
        with connect(url + query, proxy=None) as socket:
            welcome = json.loads(socket.recv(timeout=10))
            began = time.perf_counter()
            pong = ask(socket, "ping")
            took = (time.perf_counter() - began) * 1000
            stats = ask(socket, "stats")
            return True, f"welcome {welcome['admin']}, {pong['type']} in {took:.1f} ms, {len(stats['admins'])} connected"
    except ConnectionClosed as closed:
        return False, f"{closed.rcvd.code} {closed.rcvd.reason}" if closed.rcvd else "1006"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="ws://127.0.0.1:8080/admin/ws")
    parser.add_argument("--issuer", default="http://127.0.0.1:8081/realms/admin-dashboard")
    parser.add_argument("--user", default="alice")
    parser.add_argument("--password", default="alice-password")
    parser.add_argument("--leeway", type=float, default=1, help="seconds that the gate grants an expired token")
    args = parser.parse_args()

    brief = log_in(args.issuer, "admin-dashboard-brief", args.user, args.password)
    valid = log_in(args.issuer, "admin-dashboard", args.user, args.password)
    time.sleep(max(0, claims(brief)["exp"] + args.leeway + 0.2 - time.time()))
    right = True
    for name, token in {"valid": valid, "expired": brief, "invalid": tampered(valid), "missing": None}.items():
        let_in, heard = told(args.url, token)
        right &= let_in == (name == "valid")
        print(f"{name:<8} {'let in ' if let_in else 'refused'}  {heard}")
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
