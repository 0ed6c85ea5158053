"""The least that a proxy does: it tells by X-Forwarded-For whom it speaks for, at the first request of each
connection. `forwarder.py PORT UPSTREAM_PORT`"""

import asyncio
import sys


async def pump(reader, writer):
    while piece := await reader.read(1 << 16):
        writer.write(piece)
        await writer.drain()
    writer.close()


async def forward(reader, writer):
    request, headers = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n", 1)
    address = writer.get_extra_info("peername")[0]
    upstream_reader, upstream_writer = await asyncio.open_connection("127.0.0.1", int(sys.argv[2]))
    # After those of the client, as every proxy does it.
    upstream_writer.write(b"%s\r\n%sX-Forwarded-For: %s\r\n\r\n" % (request, headers.removesuffix(b"\r\n"), address.encode()))
    await asyncio.gather(pump(reader, upstream_writer), pump(upstream_reader, writer), return_exceptions=True)


async def main():
    server = await asyncio.start_server(forward, "127.0.0.1", int(sys.argv[1]))
    await server.serve_forever()


asyncio.run(main())
