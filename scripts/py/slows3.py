"""A slow line to an S3 server: so many bytes a second for all, and a delay for each request.

usage: slows3.py --to HOST:PORT --rate BYTES --delay SECONDS

Prints its own port. What clients send is held to the rate; the answer to each
request starts later by the delay. It ends with its parent.
"""

import argparse
import asyncio
import sys
import time

BLOCK = 1 << 16


class Rate:
    """Lets through so many bytes a second, whoever sends them."""

    def __init__(self, rate):
        self._rate, self._free = rate, 0.0

    async def take(self, number):
        now = time.monotonic()
        # Half a block's time may be made up for after a pause, not more.
        self._free = max(self._free, now - BLOCK / self._rate / 2) + number / self._rate
        if self._free > now:
            await asyncio.sleep(self._free - now)


async def serve(options):
    rate = Rate(options.rate)
    host, port = options.to.rsplit(":", 1)

    async def connected(reader, writer):
        to_reader, to_writer = await asyncio.open_connection(host, int(port))
        asked = asyncio.Event()

        async def there():
            while data := await reader.read(BLOCK):
                asked.set()
                await rate.take(len(data))
                to_writer.write(data)
                await to_writer.drain()
            to_writer.write_eof()

        async def back():
            while data := await to_reader.read(BLOCK):
                if asked.is_set():
                    asked.clear()
                    await asyncio.sleep(options.delay)
                writer.write(data)
                await writer.drain()

        try:
            await asyncio.gather(there(), back())
        except OSError:
            pass  # one of both has gone; so does the other
        finally:
            writer.close()
            to_writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0, limit=BLOCK)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.read)  # until the parent closes it
    server.close()


def main():
    p = argparse.ArgumentParser(prog="slows3", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, usage=argparse.SUPPRESS)
    p.add_argument("--to", required=True)
    p.add_argument("--rate", type=float, required=True)
    p.add_argument("--delay", type=float, required=True)
    asyncio.run(serve(p.parse_args()))


main()
