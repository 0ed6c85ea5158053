import json
from urllib.parse import unquote

from channels.layers import get_channel_layer
from django.http import JsonResponse
from django.urls import path
from django.views.decorators.http import require_POST


async def tell(group, **said):
    await get_channel_layer().group_send(group, {"type": "tell", "said": said})
    return JsonResponse(said, status=202)


@require_POST
async def notifications(request):
    """A notification for whoever asks, as when a long export of theirs is ready."""
    return await tell(f"user.{request.headers['X-Auth-Subject']}", notification=json.loads(request.body)["text"])


@require_POST
async def events(request, org_id):
    by = unquote(request.headers["X-Auth-Username"])
    return await tell(f"org.{org_id}", event=json.loads(request.body)["text"], by=by, organization=org_id)


urlpatterns = [
    path("api/notifications/", notifications),
    path("api/events/<slug:org_id>/", events),
]
