"""Cases that several reviewers annotate together. Who signs out is put on the service's own blacklist, in Redis."""

import os
from collections import defaultdict
from urllib.parse import unquote

import redis.asyncio
from fastapi import FastAPI, Request, WebSocket

LONGEST = 3600  # seconds that a token may live

app = FastAPI()
store = redis.asyncio.from_url(os.environ.get("REDIS_URL", "redis://127.0.0.1:6380"))
reviewers = defaultdict(set)


@app.post("/auth/logout", status_code=204)
async def logout(request: Request):
    token = request.headers["Authorization"].removeprefix("Bearer ")
    await store.setex(f"blacklist:{token}", LONGEST, "1")


@app.websocket("/ws/cases/{case}")
async def review(socket: WebSocket, case: str):
    reviewer = unquote(socket.headers["x-auth-username"])
    await socket.accept()
    await socket.send_json({"case": case, "reviewer": reviewer})
    reviewers[case].add(socket)
    try:
        async for note in socket.iter_json():
            for other in list(reviewers[case]):
                await other.send_json({"by": reviewer, "said": note["say"]})
    finally:
        reviewers[case].discard(socket)
