"""The demo's web site. One file without imports of ours, since every server keeps its own copy in its folder.

    python {root}/site.py --address 127.0.0.11 --port 8000 --root {root} --database 127.0.0.1:5000

`root/release.json` (`{"release": "7"}`) says which release it is; while a file `root/BROKEN` exists, `/health` is 503.
A licence in `root/LICENCE` is bound to one address: on any other, such as that of a clone, `/health` is 503 too.
Orders live in the database, never here: an answer of 201 is given once the database has committed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

KEEP_ALIVE = 90  # seconds: well above what a balancer keeps an idle connection for, or it would reuse a closing one
GRACE = 15  # seconds for what is in flight at SIGTERM: longer than the slowest page and download
SLOW = 3.0
CHUNKS_PER_SECOND = 10
MOST_BYTES, MOST_SECONDS = 64 * 1024 * 1024, 30.0
BODY_LIMIT = 64 * 1024
CYCLE = bytes(
    range(251)
)  # byte n of any download is n modulo 251: a prime, so that a lost chunk of any usual size shows


class Database:
    """One connection to the order database, with questions in flight answered in their order."""

    def __init__(self, address: str) -> None:
        self._host, _, port = address.rpartition(":")
        self._port = int(port)
        self._open = asyncio.Lock()
        self._writer: asyncio.StreamWriter | None = None
        self._waiting: deque[asyncio.Future[dict[str, Any]]] = deque()
        self._reading: asyncio.Task[None] | None = None

    async def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """The answer. Raises OSError when the database is away or went away before it answered: never asked twice."""
        async with self._open:
            if self._writer is None:
                reader, self._writer = await asyncio.open_connection(self._host, self._port)
                self._reading = asyncio.create_task(self._read(reader, self._writer))
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting.append(answer)
        self._writer.write(json.dumps(question).encode() + b"\n")
        return await answer

    async def _read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while line := await reader.readline():
                answer = self._waiting.popleft()
                if not answer.cancelled():
                    answer.set_result(json.loads(line))
        lost, self._waiting, self._writer = self._waiting, deque(), None
        writer.close()
        for answer in lost:
            if not answer.done():
                answer.set_exception(ConnectionError("the order database went away"))


def stamped(app: ASGIApp, *, server: str, release: str) -> ASGIApp:
    """Every HTTP answer says which server and release gave it."""
    marks = [(b"x-served-by", server.encode()), (b"x-release", release.encode())]

    async def stamp(scope: Scope, receive: Receive, send: Send) -> None:
        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *marks]
            await send(message)

        await app(scope, receive, marked)

    return stamp


def build(*, root: Path, database: Database, server: str) -> ASGIApp:
    """The site as an ASGI app."""
    release = read_release(root)

    async def home(_: Request) -> Response:
        return HTMLResponse(PAGE.replace("RELEASE", release))

    async def health(_: Request) -> Response:
        if (root / "BROKEN").exists():
            return JSONResponse({"ok": False, "why": "the file BROKEN exists"}, status_code=503)
        licence = root / "LICENCE"
        if licence.exists() and licence.read_text().strip() != server.rpartition(":")[0]:
            return JSONResponse({"ok": False, "why": "the licence is bound to another address"}, status_code=503)
        return JSONResponse({"ok": True})

    async def item(request: Request) -> Response:
        number = request.path_params["number"]
        return JSONResponse({"id": number, "name": f"Item {number}", "cents": 100 + number * 37 % 9900})

    async def slow(_: Request) -> Response:
        await asyncio.sleep(SLOW)
        return JSONResponse({"ok": True, "seconds": SLOW})

    async def echo(socket: WebSocket) -> None:
        await socket.accept()
        try:
            while True:
                await socket.send_text(await socket.receive_text())
        except (WebSocketDisconnect, KeyError):  # KeyError: a binary frame, which this echo does not speak
            return

    routes = [
        Route("/", home),
        Route("/health", health),
        Route("/api/item/{number:int}", item),
        Route("/orders", taking_orders(database), methods=["POST"]),
        Route("/slow", slow),
        Route("/download", download),
        WebSocketRoute("/ws", echo),
    ]
    return stamped(Starlette(routes=routes), server=server, release=release)


def taking_orders(database: Database) -> Callable[[Request], Awaitable[Response]]:
    async def orders(request: Request) -> Response:
        if int(request.headers.get("content-length", BODY_LIMIT + 1)) > BODY_LIMIT:
            return JSONResponse({"error": f"an order has a length, of at most {BODY_LIMIT} bytes"}, status_code=413)
        try:
            order = json.loads(await request.body())
            stored = await database.ask({"op": "put", "id": order["id"], "body": order})
        except (ValueError, KeyError, TypeError):
            return JSONResponse({"error": "an order is a JSON object with an id"}, status_code=400)
        except OSError as problem:
            return JSONResponse({"error": str(problem)}, status_code=503)
        if not stored["ok"]:
            return JSONResponse({"error": stored["error"]}, status_code=400)
        return JSONResponse({"id": order["id"], "seen": stored["seen"]}, status_code=201)

    return orders


async def download(request: Request) -> Response:
    """`bytes` of the cycle, spread evenly over `seconds`."""
    try:
        size = int(request.query_params.get("bytes", "1048576"))
        seconds = float(request.query_params.get("seconds", "1"))
    except ValueError:
        return JSONResponse({"error": "bytes is a whole number and seconds a number"}, status_code=400)
    if not (0 < size <= MOST_BYTES and 0 <= seconds <= MOST_SECONDS):
        return JSONResponse({"error": f"at most {MOST_BYTES} bytes and {MOST_SECONDS:.0f} seconds"}, status_code=400)
    return Trickle(size=size, seconds=seconds)


class Trickle(Response):
    """A body sent at an even pace.

    Not Starlette's streaming response: that one imports half of anyio at its first use, and holds every other user of
    a new server up for 90 ms.
    """

    def __init__(self, *, size: int, seconds: float) -> None:
        super().__init__(media_type="application/octet-stream", headers={"content-length": str(size)})
        self._size, self._seconds = size, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's three
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        clock = asyncio.get_running_loop().time
        began, chunks, sent = clock(), max(1, int(self._seconds * CHUNKS_PER_SECOND)), 0
        for chunk in range(1, chunks + 1):
            until = self._size * chunk // chunks
            await send({"type": "http.response.body", "body": cycle(sent, until), "more_body": True})
            sent = until
            await asyncio.sleep(max(0.0, began + self._seconds * chunk / chunks - clock()))
        await send({"type": "http.response.body", "body": b""})


def cycle(start: int, stop: int) -> bytes:
    """Bytes `start` to `stop` of the endless cycle."""
    first = start % len(CYCLE)
    return (CYCLE * ((stop - start) // len(CYCLE) + 2))[first : first + stop - start]


def read_release(root: Path) -> str:
    """What `release.json` says; "0" without the file, since a folder without one is still a site."""
    file = root / "release.json"
    if not file.exists():
        return "0"
    try:
        release = json.loads(file.read_text())["release"]
    except (ValueError, KeyError, TypeError) as problem:
        raise SystemExit(f'{file}: want {{"release": "..."}}: {problem!r}') from problem
    return "".join(letter for letter in str(release) if letter.isalnum() or letter in ".-_")


PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Lantern &amp; Co.</title>
<style>body{font:17px/1.6 system-ui,sans-serif;max-width:34rem;margin:12vh auto;padding:0 1rem;color:#243}</style>
<h1>Lantern &amp; Co.</h1><p>Lamps for long evenings. Release RELEASE.</p>
<p><a href="/api/item/7">Item 7</a> · <a href="/health">Health</a></p></html>
"""


def main() -> None:
    parser = argparse.ArgumentParser(description="the demo's web site")
    parser.add_argument("--address", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--root", type=Path, required=True, help="the server's folder, with release.json")
    parser.add_argument("--database", required=True, metavar="HOST:PORT")
    asked = parser.parse_args()
    app = build(root=asked.root, database=Database(asked.database), server=f"{asked.address}:{asked.port}")
    uvicorn.run(
        app,
        host=asked.address,
        port=asked.port,
        http="httptools",
        loop="uvloop",
        ws="websockets-sansio",
        lifespan="off",
        access_log=False,
        log_level="warning",
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=GRACE,
    )


if __name__ == "__main__":
    main()
