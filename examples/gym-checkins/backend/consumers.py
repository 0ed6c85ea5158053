from urllib.parse import unquote

from channels.generic.websocket import AsyncJsonWebsocketConsumer


class CheckIns(AsyncJsonWebsocketConsumer):
    """The check-ins of one room; without a room, those of the whole gym."""

    async def connect(self):
        self.room = self.scope["url_route"]["kwargs"].get("room")
        self.group = f"room.{self.room}" if self.room else "gym"
        self.member = unquote(dict(self.scope["headers"])[b"x-auth-username"].decode())
        await self.channel_layer.group_add(self.group, self.channel_name)
        await self.accept()
        await self.send_json({"welcome": self.member})

    async def receive_json(self, _):
        """Whatever a member sends is a check-in to the room that the socket is of."""
        await check_in(self.channel_layer, self.member, self.room)

    async def checked_in(self, event):
        await self.send_json({"member": event["member"], "room": event["room"]})

    async def disconnect(self, _):
        await self.channel_layer.group_discard(self.group, self.channel_name)


async def check_in(layer, member, room):
    for group in ["gym", f"room.{room}"] if room else ["gym"]:
        await layer.group_send(group, {"type": "checked_in", "member": member, "room": room})
