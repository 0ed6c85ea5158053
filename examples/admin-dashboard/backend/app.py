"""What the service does right now, for its administrators."""

import os
import pathlib
import time
from urllib.parse import unquote

from fastapi import FastAPI, Request, WebSocket
from fastapi.responses import FileResponse, HTMLResponse

HERE = pathlib.Path(__file__).parent
HELPER = HERE.parents[2] / "clients" / "sidegate.mjs"
ISSUER = os.environ.get("ISSUER", "http://127.0.0.1:8081/realms/admin-dashboard")

app = FastAPI()
started = time.monotonic()
admins = {}
answered = 0


def stats():
    return {"type": "stats", "admins": sorted(admins.values()), "answered": answered, "uptime": round(time.monotonic() - started, 1)}


ANSWERS = {"ping": lambda: {"type": "pong"}, "stats": stats}


@app.websocket("/admin/ws")
async def dashboard(socket: WebSocket):
    global answered
    await socket.accept()
    admins[socket] = unquote(socket.headers["x-auth-username"])
    try:
        await socket.send_json({"type": "welcome", "admin": admins[socket]})
        async for message in socket.iter_json():
            answer = ANSWERS.get(message.get("type"))
            await socket.send_json(answer() if answer else {"type": "error", "error": "ping or stats"})
            answered += 1
    finally:
        del admins[socket]


@app.get("/", response_class=HTMLResponse)
async def page(request: Request):
    text = (HERE / "page.html").read_text()
    return text.replace("{nonce}", request.headers.get("X-CSP-Nonce", "")).replace("{issuer}", ISSUER)


@app.get("/sidegate.mjs")
async def helper():
    return FileResponse(HELPER, media_type="text/javascript")
