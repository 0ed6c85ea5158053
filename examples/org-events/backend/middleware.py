import json
from base64 import urlsafe_b64decode

from django.contrib.auth.models import User


class Identity:
    """What the gate has verified: scope["token_claims"], and scope["user"] made of them."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        payload = dict(scope["headers"])[b"x-auth-claims"]
        claims = json.loads(urlsafe_b64decode(payload + b"=="))
        user = User(username=claims["preferred_username"], email=claims["email"])
        return await self.app({**scope, "user": user, "token_claims": claims}, receive, send)
