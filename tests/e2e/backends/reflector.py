"""Sends every message back, whatever its size, before it looks at what comes after it: so its verdicts depend on the
bytes alone, not on how they were cut. `reflector.py PORT deflate|plain`: with permessage-deflate, or without."""

import sys

from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from autobahn.websocket.compress import PerMessageDeflateOffer, PerMessageDeflateOfferAccept
from twisted.internet import reactor

port, kind = int(sys.argv[1]), sys.argv[2]


class Reflector(WebSocketServerProtocol):
    def onMessage(self, payload, is_binary):
        self.sendMessage(payload, is_binary)


def accept(offers):
    for offer in offers:
        if kind == "deflate" and isinstance(offer, PerMessageDeflateOffer):
            return PerMessageDeflateOfferAccept(offer)
    return None


factory = WebSocketServerFactory()
factory.protocol = Reflector
# A wrong frame is answered with a Close, not with a cut.
factory.setProtocolOptions(failByDrop=False, perMessageCompressionAccept=accept)
reactor.listenTCP(port, factory, interface="127.0.0.1")
reactor.run()
