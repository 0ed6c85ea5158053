from urllib.parse import unquote

from channels.generic.websocket import AsyncJsonWebsocketConsumer


class Support(AsyncJsonWebsocketConsumer):
    """The talk about one ticket."""

    async def connect(self):
        headers = {name.decode(): value.decode() for name, value in self.scope["headers"]}
        self.user = unquote(headers["x-auth-username"])
        self.group = f"ticket.{self.scope['url_route']['kwargs']['ticket']}"
        await self.channel_layer.group_add(self.group, self.channel_name)
        await self.accept()
        await self.send_json({"welcome": self.user, "from": headers["x-forwarded-for"], "over": headers["x-forwarded-proto"]})

    async def receive_json(self, text):
        await self.channel_layer.group_send(self.group, {"type": "said", "by": self.user, "text": text})

    async def said(self, event):
        await self.send_json({"by": event["by"], "said": event["text"]})

    async def disconnect(self, _):
        await self.channel_layer.group_discard(self.group, self.channel_name)
