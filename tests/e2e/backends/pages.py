"""Pages with django-csp, which gives each of them a nonce and a policy of its own; and the client helper."""

import pathlib

import django
from csp.constants import NONCE, SELF
from csp.decorators import csp_exempt
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.http import HttpResponse, HttpResponseNotModified, JsonResponse
from django.urls import path

settings.configure(
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    MIDDLEWARE=["csp.middleware.CSPMiddleware"],
    CONTENT_SECURITY_POLICY={"DIRECTIVES": {"default-src": [SELF], "script-src": [SELF, NONCE], "report-uri": ["/csp/"]}},
)
django.setup()

PAGE = """<!doctype html><title>{nonce}</title>
<script>window.alien = true</script>
<script nonce="{nonce}">window.mine = (window.mine ?? 0) + 1</script>
<body>{more}"""


def own(request):
    """With django-csp's nonce; `more` is written into it as it stands, which is a hole for any script."""
    return HttpResponse(PAGE.format(nonce=request.csp_nonce, more=request.GET.get("more", "")))


@csp_exempt()
def given(request):
    """With the nonce that the gate gives."""
    return HttpResponse(PAGE.format(nonce=request.headers.get("X-CSP-Nonce", ""), more=request.GET.get("more", "")))


@csp_exempt()
def stored(request):
    """The same from the browser's cache, once it has been asked for."""
    if request.headers.get("If-None-Match") == '"1"':
        print("not modified", flush=True)
        return HttpResponseNotModified(headers={"ETag": '"1"'})
    answer = given(request)
    answer.headers["ETag"], answer.headers["Cache-Control"] = '"1"', "no-cache"
    return answer


@csp_exempt()
def plain(request):
    return HttpResponse("<!doctype html><title>plain</title>")


@csp_exempt()
def api(request):
    print(f"{request.method} {request.path}", flush=True)
    return JsonResponse({"method": request.method, "user": request.headers.get("X-Auth-Username")}, headers={"X-Total": "3"})


@csp_exempt()
def helper(request):
    module = pathlib.Path(__file__).parents[3] / "clients" / "sidegate.mjs"
    return HttpResponse(module.read_bytes(), content_type="text/javascript")


urlpatterns = [
    path("pages/own/", own),
    path("pages/given/", given),
    path("pages/stored/", stored),
    path("pages/plain/", plain),
    path("pages/api/", api),
    path("pages/sidegate.mjs", helper),
]

application = get_asgi_application()
