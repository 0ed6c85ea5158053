"""An older service with FastAPI that still wants its token in the query. It looks whether one is there,
as its kind often does no more, and tells over the socket what it saw."""

from fastapi import FastAPI, WebSocket

app = FastAPI()


@app.websocket("/ws/echo/")
async def echo(socket: WebSocket):
    tokens = socket.query_params.getlist("token")
    if not tokens:
        await socket.close(1008, "no token")
        return
    await socket.accept()
    headers = [[name.decode("latin-1"), value.decode("latin-1")] for name, value in socket.scope["headers"]]
    seen = {
        "tokens": tokens,
        "query": socket.url.query,
        "headers": headers,
        "subprotocols": socket.scope["subprotocols"],
    }
    await socket.send_json(seen)
    async for text in socket.iter_text():
        await socket.send_text(text)
