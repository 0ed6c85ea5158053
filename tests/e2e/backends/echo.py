"""An older service with FastAPI that still wants its token in the query. It looks whether one is there,
as its kind often does no more, and tells over the socket what it saw. It has a REST API too, with a CORS
policy of its own: for its old page alone."""

from fastapi import FastAPI, Request, WebSocket
from fastapi.middleware.cors import CORSMiddleware

OLD_PAGE = "https://old.example.com"

app = FastAPI()
app.add_middleware(CORSMiddleware, allow_origins=[OLD_PAGE], allow_methods=["DELETE"], expose_headers=["X-Old"])


@app.middleware("http")
async def tell(request, call_next):
    print(f"{request.method} {request.url.path}", flush=True)
    return await call_next(request)


@app.api_route("/rest/{item}", methods=["GET", "POST"], include_in_schema=False)
async def rest(request: Request):
    return {"user": request.headers.get("x-auth-username"), "cookies": list(request.cookies)}


@app.get("/rest/{item}/failing")
async def failing():
    raise RuntimeError("the backend's own trouble")


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
