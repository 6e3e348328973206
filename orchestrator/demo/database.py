"""The demo's order database: one process, one SQLite file, one line of JSON in and one out, over TCP.

It stands apart from the servers that are replaced, as a real site's database does. An order that arrives a second
time is not refused: its `seen` is counted up, so that "each order was stored once" is something that can be shown.

    {"op": "put", "id": "r1-00000007", "body": {...}}
        ->  {"ok": true, "seen": 1}
    {"op": "audit", "run": "r1", "unacknowledged": [...]}
        ->  {"ok": true, "stored": 1, "repeated": 0, "of_unacknowledged": 0}

An answer of `put` is given after the commit. Answers come in the order of the questions, so a client may pipeline.
A bad line is answered `{"ok": false, "error": "..."}`, and the connection goes on.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
import sqlite3
from collections.abc import Iterable
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

LINE_LIMIT = 4 * 1024 * 1024  # an audit names the orders without an answer: about 20 bytes each
ID_LIMIT = 200


@dataclass(frozen=True, kw_only=True)
class Audit:
    """What the database holds of one run: orders stored, how many of them came more than once, and how many of
    those that the client had no answer for are stored all the same."""

    stored: int
    repeated: int
    of_unacknowledged: int


class Orders:
    """The orders in their file. `put` returns once they would survive the death of this process."""

    def __init__(self, file: Path) -> None:
        self._db = sqlite3.connect(file, isolation_level=None)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS orders (id TEXT PRIMARY KEY, body TEXT NOT NULL, seen INTEGER NOT NULL)"
        )

    def close(self) -> None:
        self._db.close()

    def put(self, id: str, body: str) -> int:
        """How many times this id has arrived, this time included. The first body is kept."""
        row = self._db.execute(
            "INSERT INTO orders VALUES (?, ?, 1) ON CONFLICT (id) DO UPDATE SET seen = seen + 1 RETURNING seen",
            (id, body),
        ).fetchone()
        return int(row[0])

    def audit(self, run: str, unacknowledged: Iterable[str]) -> Audit:
        """Counts the orders whose id begins with `run` and a dash."""
        low, high = f"{run}-", f"{run}."  # "." follows "-" in ASCII, and a range uses the primary key
        stored, repeated = self._db.execute(
            "SELECT count(*), count(*) FILTER (WHERE seen > 1) FROM orders WHERE id >= ? AND id < ?", (low, high)
        ).fetchone()
        (late,) = self._db.execute(
            "SELECT count(*) FROM orders WHERE id >= ? AND id < ? AND id IN (SELECT value FROM json_each(?))",
            (low, high, json.dumps(list(unacknowledged))),
        ).fetchone()
        return Audit(stored=stored, repeated=repeated, of_unacknowledged=late)


def audit(address: str, run: str, unacknowledged: Iterable[str] = ()) -> Audit:
    """Ask the database at HOST:PORT. Raises OSError if it does not answer within 10 s, ValueError if it refuses."""
    host, _, port = address.rpartition(":")
    question = json.dumps({"op": "audit", "run": run, "unacknowledged": list(unacknowledged)}) + "\n"
    with closing(socket.create_connection((host, int(port)), timeout=10)) as line, line.makefile("rb") as answers:
        line.sendall(question.encode())
        answer = json.loads(answers.readline() or b'{"ok": false, "error": "no answer"}')
    if not answer.pop("ok"):
        raise ValueError(f"the order database at {address} refused: {answer['error']}")
    return Audit(**answer)


def reply(orders: Orders, line: bytes) -> dict[str, Any]:
    """The answer to one line."""
    try:
        asked = json.loads(line)
    except ValueError as problem:
        return {"ok": False, "error": f"not JSON: {problem}"}
    match asked:
        case {"op": "put", "id": str(id), "body": body} if 0 < len(id) <= ID_LIMIT:
            return {"ok": True, "seen": orders.put(id, json.dumps(body))}
        case {"op": "audit", "run": str(run), "unacknowledged": list(ids)}:
            found = orders.audit(run, map(str, ids))
            return {"ok": True, **vars(found)}
        case _:
            return {"ok": False, "error": f"want put with an id of 1-{ID_LIMIT} characters and a body, or audit"}


async def serve(*, file: Path, address: str, port: int, ready_fd: int | None) -> None:
    """Serve until SIGTERM or SIGINT. Says its port on `ready_fd` (or standard output) once it accepts."""
    orders = Orders(file)
    talks: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        this = cast("asyncio.Task[None]", asyncio.current_task())
        talks[this] = writer
        this.add_done_callback(talks.pop)
        with closing(writer), suppress(ConnectionError, ValueError):  # ValueError: a line beyond the limit
            while line := await reader.readline():
                writer.write(json.dumps(reply(orders, line)).encode() + b"\n")
                await writer.drain()

    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    server = await asyncio.start_server(talk, address, port, limit=LINE_LIMIT, backlog=256)
    announce(server.sockets[0].getsockname()[1], ready_fd)
    await stop.wait()
    server.close()
    for writer in list(talks.values()):
        writer.close()
    await asyncio.gather(*talks)
    orders.close()


def announce(port: int, ready_fd: int | None) -> None:
    if ready_fd is None:
        print(port, flush=True)
        return
    with os.fdopen(ready_fd, "w") as ready:
        ready.write(f"{port}\n")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m orchestrator.demo.database", description="the demo's orders")
    parser.add_argument("--address", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0: one that the system chooses")
    parser.add_argument("--file", type=Path, required=True, help="the SQLite file; made if missing")
    parser.add_argument("--ready-fd", type=int, help="where to write the port once ready, instead of standard output")
    asked = parser.parse_args()
    asyncio.run(serve(file=asked.file, address=asked.address, port=asked.port, ready_fd=asked.ready_fd))


if __name__ == "__main__":
    main()
