from channels.generic.websocket import AsyncJsonWebsocketConsumer


class Listener(AsyncJsonWebsocketConsumer):
    async def connect(self):
        self.group = self.group_of_scope()
        await self.channel_layer.group_add(self.group, self.channel_name)
        await self.accept()
        claims = self.scope["token_claims"]
        await self.send_json({"user": self.scope["user"].username, "organizations": claims.get("organization", [])})

    async def tell(self, event):
        await self.send_json(event["said"])

    async def disconnect(self, _):
        await self.channel_layer.group_discard(self.group, self.channel_name)


class Notifications(Listener):
    """What is for this user alone."""

    def group_of_scope(self):
        return f"user.{self.scope['token_claims']['sub']}"


class Events(Listener):
    """What happens in one organization."""

    def group_of_scope(self):
        return f"org.{self.scope['url_route']['kwargs']['org_id']}"
