import json
import os
import pathlib

from channels.layers import get_channel_layer
from django.http import HttpResponse, JsonResponse
from django.shortcuts import render
from django.urls import path

from consumers import check_in

HELPER = pathlib.Path(__file__).parents[3] / "clients" / "sidegate.mjs"
ISSUER = os.environ.get("ISSUER", "http://127.0.0.1:8081/realms/gym-checkins")
TURNSTILE_KEY = "turnstile-7"


def page(request):
    return render(request, "page.html", {"nonce": request.headers.get("X-CSP-Nonce", ""), "issuer": ISSUER})


def helper(request):
    return HttpResponse(HELPER.read_text(), content_type="text/javascript")


async def check_ins(request):
    """For the turnstiles, which have a key and no user; the gate leaves it alone."""
    if request.headers.get("Authorization") != f"Turnstile {TURNSTILE_KEY}":
        return JsonResponse({"error": "no turnstile"}, status=401, headers={"WWW-Authenticate": "Turnstile"})
    said = json.loads(request.body)
    await check_in(get_channel_layer(), said["member"], said["room"])
    return JsonResponse(said, status=201)


def health(request):
    return JsonResponse({"status": "ok"})


urlpatterns = [
    path("", page),
    path("sidegate.mjs", helper),
    path("api/checkins/", check_ins),
    path("health/", health),
]
