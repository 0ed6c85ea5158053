"""Prints what a user hears, for as long as it is run: listen.py USER PATH, such as listen.py alice /ws/events/acme/"""

import asyncio
import os
import pathlib
import sys

import httpx

sys.path.append(str(pathlib.Path(__file__).resolve().parents[2] / "clients"))

from sidegate import GateSocket  # noqa: E402

GATE = os.environ.get("GATE", "http://127.0.0.1:8080")
ISSUER = os.environ.get("ISSUER", "http://127.0.0.1:8081/realms/org-events")


async def main(user, path):
    async def token(_renew):
        async with httpx.AsyncClient(trust_env=False) as http:
            form = {"client_id": "events", "grant_type": "password", "username": user, "password": f"{user}-password"}
            answer = await http.post(f"{ISSUER}/protocol/openid-connect/token", data={**form, "scope": "openid organization:*"})
            return answer.raise_for_status().json()["access_token"]

    def tell(state):
        print(state.name, state.label, file=sys.stderr, flush=True)

    async with GateSocket(GATE.replace("http", "ws", 1) + path, token, on_state=tell, proxy=None) as socket:
        async for message in socket:
            print(message, flush=True)


if len(sys.argv) != 3:
    sys.exit(__doc__)
asyncio.run(main(*sys.argv[1:]))
