import os

from channels.routing import ProtocolTypeRouter, URLRouter
from django.core.asgi import get_asgi_application
from django.urls import path

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "settings")
api = get_asgi_application()

from consumers import Events, Notifications  # noqa: E402
from middleware import Identity  # noqa: E402

application = ProtocolTypeRouter({
    "http": api,
    "websocket": Identity(
        URLRouter([
            path("ws/notifications/", Notifications.as_asgi()),
            path("ws/events/<slug:org_id>/", Events.as_asgi()),
        ])
    ),
})
