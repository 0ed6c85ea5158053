import json
import os
import pathlib

import httpx
from django.http import HttpResponse
from django.shortcuts import render
from django.urls import path
from django.views.decorators.http import require_POST

HELPER = pathlib.Path(__file__).parents[3] / "clients" / "sidegate.mjs"
OPENID = os.environ.get("ISSUER", "http://127.0.0.1:8081/realms/support-chat") + "/protocol/openid-connect"


def page(request):
    return render(request, "page.html")


def helper(request):
    return HttpResponse(HELPER.read_text(), content_type="text/javascript")


async def keycloak(method, name, **options):
    """Its answer, as it is."""
    async with httpx.AsyncClient(trust_env=False) as client:
        answer = await client.request(method, f"{OPENID}/{name}", **options)
    return HttpResponse(answer.content, status=answer.status_code, content_type=answer.headers.get("Content-Type"))


@require_POST
async def login(request):
    said = json.loads(request.body)
    form = {"grant_type": "password", "username": said["username"], "password": said["password"], "scope": "openid"}
    return await keycloak("POST", "token", data={"client_id": "support-chat", **form})


@require_POST
async def refresh(request):
    form = {"grant_type": "refresh_token", "refresh_token": json.loads(request.body)["refresh_token"]}
    return await keycloak("POST", "token", data={"client_id": "support-chat", **form})


async def me(request):
    return await keycloak("GET", "userinfo", headers={"Authorization": request.headers.get("Authorization", "")})


urlpatterns = [
    path("", page),
    path("sidegate.mjs", helper),
    path("api/auth/login/", login),
    path("api/auth/refresh/", refresh),
    path("api/auth/me/", me),
]
