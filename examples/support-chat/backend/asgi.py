import os

from channels.routing import ProtocolTypeRouter, URLRouter
from django.core.asgi import get_asgi_application
from django.urls import path

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "settings")
pages = get_asgi_application()

from consumers import Support  # noqa: E402

application = ProtocolTypeRouter({
    "http": pages,
    "websocket": URLRouter([path("ws/support/<slug:ticket>/", Support.as_asgi())]),
})
