"""A chat with Django Channels as it stands behind the gate: no authentication code at all. It believes
the identity headers, and tells over the socket what it saw."""

import asyncio
import hashlib
import json
import secrets
import tempfile

import django
from channels.generic.websocket import AsyncWebsocketConsumer
from channels.routing import ProtocolTypeRouter, URLRouter
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.http import HttpResponse, JsonResponse, StreamingHttpResponse
from django.urls import path

settings.configure(
    ALLOWED_HOSTS=["127.0.0.1"],
    ROOT_URLCONF=__name__,
    CHANNEL_LAYERS={"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}},
)
django.setup()
http_application = get_asgi_application()


def headers_of(scope):
    return [[name.decode("latin-1"), value.decode("latin-1")] for name, value in scope["headers"]]


class Room(AsyncWebsocketConsumer):
    async def connect(self):
        headers = headers_of(self.scope)
        self.user = dict(headers).get("x-auth-username", "anonymous")
        self.room = "{kind}.{room}".format(**self.scope["url_route"]["kwargs"])
        await self.channel_layer.group_add(self.room, self.channel_name)
        offered = self.scope["subprotocols"]
        await self.accept("chat.v1" if "chat.v1" in offered else None)
        seen = {
            "headers": headers,
            "path": self.scope["path"],
            "query": self.scope["query_string"].decode("latin-1"),
            "subprotocols": offered,
        }
        await self.send(json.dumps(seen))

    async def receive(self, text_data=None, bytes_data=None):
        if bytes_data is not None:
            return await self.send(bytes_data=bytes_data)
        asked = json.loads(text_data)
        if "close" in asked:
            return await self.close(asked["close"])
        await self.channel_layer.group_send(self.room, {"type": "said", "by": self.user, "text": asked["say"]})

    async def said(self, event):
        await self.send(json.dumps({"by": event["by"], "said": event["text"]}))

    async def disconnect(self, code):
        await self.channel_layer.group_discard(self.room, self.channel_name)
        print(f"left {self.room} with {code}", flush=True)


def echo(request):
    return JsonResponse({
        "method": request.method,
        "headers": headers_of(request.scope),
        "path": request.path,
        "query": request.META["QUERY_STRING"],
    })


stored = tempfile.TemporaryFile()


def upload(request):
    stored.seek(0)
    stored.truncate()
    digest = hashlib.sha256()
    while chunk := request.read(1 << 16):
        digest.update(chunk)
        stored.write(chunk)
    return JsonResponse({"size": stored.tell(), "sha256": digest.hexdigest()})


def download(request):
    size = stored.seek(0, 2)
    stored.seek(0)

    async def chunks():
        while chunk := stored.read(1 << 16):
            yield chunk

    return StreamingHttpResponse(chunks(), headers={"Content-Length": size})


def ticks(request):
    async def lines():
        for tick in range(3):
            yield f"data: {tick}\n\n"
            await asyncio.sleep(0.5)

    return StreamingHttpResponse(lines(), content_type="text/event-stream")


def failing(request):
    return HttpResponse("the backend's own words", status=418)


def page_with(nonce, **headers):
    return HttpResponse(f'<script nonce="{nonce}">chat()</script>', headers=headers)


def page(request):
    return page_with(request.headers.get("X-CSP-Nonce", ""))


def page_with_its_own_policy(request):
    nonce = secrets.token_urlsafe(18)
    policy = f"default-src 'self'; script-src 'strict-dynamic' 'nonce-{nonce}'"
    return page_with(nonce, **{"Content-Security-Policy": policy, "X-Frame-Options": "ALLOWALL"})


def change(request):
    """Changes something for whoever it is, and knows nothing of CSRF tokens."""
    user = request.headers.get("X-Auth-Username")
    print(f"{request.method} by {user}", flush=True)
    return JsonResponse({"changed_by": user})


urlpatterns = [
    path("page/", page),
    path("page/own/", page_with_its_own_policy),
    path("settings/", change),
    path("api/echo/", echo),
    path("api/me/", echo),
    path("api/upload/", upload),
    path("api/download/", download),
    path("api/ticks/", ticks),
    path("api/teapot/", failing),
]

application = ProtocolTypeRouter({
    "http": http_application,
    "websocket": URLRouter([path("ws/<str:kind>/<str:room>/", Room.as_asgi())]),
})
