"""The demo's numbers can be believed: its users count each request once, and hide nothing that a site does to them."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest
from websockets.sync.server import ServerConnection, serve

from orchestrator.demo.database import Audit, audit
from orchestrator.demo.load import divide, read_marks

SITE = Path(__file__).parents[2] / "orchestrator" / "demo" / "site.py"


class Demo:
    """The processes of one test, and where they listen."""

    def __init__(self, folder: Path, ends: ExitStack) -> None:
        self.folder, self._ends = folder, ends
        self.root = folder / "root"
        self.root.mkdir()
        self.database = ""
        self.out = folder / "out"

    def start(self, *command: str, **options: Any) -> subprocess.Popen[bytes]:
        process = subprocess.Popen([sys.executable, *command], cwd=self.folder, **options)
        self._ends.callback(end, process)
        return process

    def start_database(self) -> None:
        reading, writing = os.pipe()
        with os.fdopen(reading, encoding="ascii") as ready:
            self.start(
                "-m", "orchestrator.demo.database", "--file", "orders.db", "--ready-fd", str(writing),
                pass_fds=[writing],
            )  # fmt: skip
            os.close(writing)
            self.database = f"127.0.0.1:{int(ready.readline())}"

    def start_site(self, *, memory: int | None = None) -> tuple[subprocess.Popen[bytes], str]:
        """The site as a server has it: its own copy in its own folder."""
        (self.root / "site.py").write_bytes(SITE.read_bytes())
        (self.root / "release.json").write_text('{"release": "7"}')
        port = free_port()

        def limit() -> None:
            if memory:
                resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))

        process = self.start(
            "root/site.py", "--port", str(port), "--root", "root", "--database", self.database, preexec_fn=limit
        )
        wait_for(lambda: accepts(port), "the site")
        return process, f"127.0.0.1:{port}"

    def start_load(self, target: str, *, rate: int = 100) -> subprocess.Popen[bytes]:
        load = self.start(
            "-m", "orchestrator.demo.load", "--target", target, "--site-host", "shop.test", "--rate", str(rate),
            "--out", "out", "--run", "t",
        )  # fmt: skip
        wait_for((self.out / "load.json").exists, "the load")
        return load

    def seen(self) -> dict[str, Any]:
        return json.loads((self.out / "load.json").read_text())  # type: ignore[no-any-return]  # JSON of our own

    def stop(self, load: subprocess.Popen[bytes]) -> dict[str, Any]:
        """The final word of the load, once the log has been held against it."""
        load.send_signal(signal.SIGTERM)
        assert load.wait(30) == 0
        seen = self.seen()
        log = [json.loads(line) for line in (self.out / "load.jsonl").read_text().splitlines()]
        assert seen["state"] == "done"
        assert seen["in_flight"] == 0
        assert seen["requests"] == len(log) == sum(second["count"] for second in seen["seconds"])
        assert seen["failed"] == sum(not line["ok"] for line in log) == sum(seen["reasons"].values())
        return seen


def end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


def accepts(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def wait_for(true: Callable[[], bool], what: str, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.02)


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Demo]:
    with ExitStack() as ends:
        yield Demo(tmp_path, ends)


def test_a_good_site_has_no_failed_request_and_each_order_once(demo: Demo) -> None:
    demo.start_database()
    _, target = demo.start_site()
    load = demo.start_load(target)
    wait_for(lambda: demo.seen()["requests"] > 100, "requests before")
    (demo.out / "marks.jsonl").write_text(json.dumps({"t": time.time(), "mark": "during"}) + "\n")
    wait_for(lambda: demo.seen()["websockets"]["whole"] > 0 < demo.seen()["downloads"]["whole"], "sessions")
    seen = demo.stop(load)

    assert seen["failed"] == 0, seen["failures"]
    assert min(seen["kinds"][kind]["count"] for kind in ("home", "item", "order", "download", "websocket")) > 0
    assert seen["served_by"].keys() == {target}
    assert seen["connections"]["reused"] > 0
    assert min(seen["latency"][phase]["count"] for phase in ("before", "during")) > 0
    assert seen["latency"]["after"] == {"count": 0, "p50_ms": None, "p99_ms": None, "max_ms": None}
    orders = seen["orders"]
    assert orders == {"sent": orders["acknowledged"], "acknowledged": orders["sent"], "unacknowledged": []}
    assert audit(demo.database, "t") == Audit(stored=orders["sent"], repeated=0, of_unacknowledged=0)


def test_a_killed_site_is_counted_request_by_request(demo: Demo) -> None:
    demo.start_database()
    site, target = demo.start_site()
    load = demo.start_load(target)
    wait_for(lambda: demo.seen()["echoes"] > 20, "WebSockets that talk")
    killed = time.time()
    site.kill()
    site.wait()
    dead = time.time()
    wait_for(lambda: demo.seen()["failed"] > 50, "failures")
    seen = demo.stop(load)

    log = [json.loads(line) for line in (demo.out / "load.jsonl").read_text().splitlines()]
    assert all(not line["ok"] for line in log if line["t"] > dead)
    assert all(line["ok"] for line in log if line["t"] + line["ms"] / 1000 < killed)
    assert seen["websockets"]["cut"] > 0
    assert seen["downloads"]["cut"] > 0
    orders, unknown = seen["orders"], seen["orders"]["unacknowledged"]
    stored = audit(demo.database, "t", unknown)
    assert orders["sent"] == orders["acknowledged"] + len(unknown)
    assert stored.stored - stored.of_unacknowledged == orders["acknowledged"]
    assert stored.repeated == 0


def test_a_websocket_closed_early_is_cut_even_if_closed_politely(demo: Demo) -> None:
    def one_echo(connection: ServerConnection) -> None:
        connection.send(connection.recv())

    with serve(one_echo, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            load = demo.start_load(f"127.0.0.1:{server.socket.getsockname()[1]}", rate=1)
            wait_for(lambda: demo.seen()["websockets"]["cut"] > 3, "cuts")
            assert demo.seen()["websockets"]["whole"] == 0  # later, the stop may end one just before the server does
            seen = demo.stop(load)
        finally:
            server.shutdown()
            thread.join()
    assert seen["kinds"]["websocket"]["failed"] == seen["websockets"]["cut"]
    assert any("closed by the server before its planned end" in why for why in seen["reasons"])


@contextmanager
def moody_site(*, answers: Callable[[int], bool]) -> Iterator[tuple[int, Counter[bytes]]]:
    """A site that says keep-alive and closes after each answer; where `answers(n)` is false it closes instead of it."""
    asked: Counter[bytes] = Counter()
    listening = socket.create_server(("127.0.0.1", 0), backlog=256)

    def serve_all() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listening.accept()
                with connection, suppress(OSError):
                    connection.settimeout(2)
                    path = connection.recv(4096).split(b" ")[1]
                    asked[path] += 1
                    if answers(asked[path]):
                        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")

    thread = threading.Thread(target=serve_all)
    thread.start()
    try:
        yield listening.getsockname()[1], asked
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        thread.join()


def test_a_connection_closed_while_idle_is_no_failure(demo: Demo) -> None:
    with moody_site(answers=lambda _: True) as (port, _):
        load = demo.start_load(f"127.0.0.1:{port}", rate=150)
        wait_for(lambda: demo.seen()["connections"]["closed_idle"] > 10, "idle connections found closed")
        seen = demo.stop(load)
    assert seen["kinds"]["home"]["failed"] == 0
    assert seen["connections"]["reused"] == 0


def test_no_request_is_ever_sent_twice(demo: Demo) -> None:
    with moody_site(answers=lambda number: number % 3 > 0) as (port, asked):
        load = demo.start_load(f"127.0.0.1:{port}", rate=100)
        wait_for(lambda: demo.seen()["kinds"].get("home", {"failed": 0})["failed"] > 10, "failures")
        seen = demo.stop(load)
    assert seen["kinds"]["home"] == {"count": asked[b"/"], "failed": asked[b"/"] // 3}
    assert seen["kinds"]["order"]["count"] == seen["kinds"]["order"]["failed"] == asked[b"/orders"]


def test_an_order_that_arrives_twice_is_stored_once_and_shows(demo: Demo) -> None:
    demo.start_database()
    _, target = demo.start_site()
    answers = [httpx2.post(f"http://{target}/orders", json={"id": f"r-{n}"}) for n in (1, 2, 1)]
    assert [(answer.status_code, answer.json()["seen"]) for answer in answers] == [(201, 1), (201, 1), (201, 2)]
    assert audit(demo.database, "r", ["r-2", "r-9"]) == Audit(stored=2, repeated=1, of_unacknowledged=1)
    assert audit(demo.database, "other").stored == 0


def test_the_site_starts_within_64_mib_and_says_what_is_wrong(demo: Demo) -> None:
    demo.database = f"127.0.0.1:{free_port()}"  # nobody there
    _, target = demo.start_site(memory=64 * 1024 * 1024)
    with httpx2.Client(base_url=f"http://{target}") as user:
        healthy = user.get("/health")
        assert (healthy.status_code, healthy.json(), healthy.headers["x-release"]) == (200, {"ok": True}, "7")
        (demo.root / "BROKEN").touch()
        assert user.get("/health").status_code == 503
        assert user.post("/orders", json={"id": "r-1"}).status_code == 503
        assert user.post("/orders", content=b"[1]").status_code == 400
        assert user.post("/orders", content=b"x" * 70_000).status_code == 413
        assert user.get("/download?bytes=999999999999&seconds=1").status_code == 400
        assert user.get("/download?bytes=5&seconds=nan").status_code == 400


def test_a_site_told_to_end_finishes_what_it_has_begun(demo: Demo) -> None:
    demo.start_database()
    site, target = demo.start_site()
    with socket.create_connection(("127.0.0.1", int(target.rpartition(":")[2])), timeout=10) as user:
        user.sendall(b"GET /download?bytes=1000&seconds=1.5 HTTP/1.1\r\nhost: shop.test\r\n\r\n")
        heard = user.recv(65536)
        site.terminate()
        while more := user.recv(65536):
            heard += more
    assert len(heard.partition(b"\r\n\r\n")[2]) == 1000
    assert site.wait(10) in (0, -signal.SIGTERM)


def test_marks_divide_the_latencies_and_foreign_lines_are_passed_over(tmp_path: Path) -> None:
    marks = tmp_path / "marks.jsonl"
    marks.write_text(
        '{"t": 20, "mark": "after"}\n{"t": 10, "mark": "during"}\n{"t": 15, "mark": "worker killed"}\n{"t"'
    )
    parts = divide([9.0, 10.0, 19.0, 21.0], [1.0, 2.0, 3.0, 4.0], read_marks(marks))
    assert {phase: list(part) for phase, part in parts.items()} == {"before": [1], "during": [2, 3], "after": [4]}


@pytest.mark.parametrize(
    "arguments",
    [
        ["--target", "nowhere", "--site-host", "a"],
        ["--target", "h:0", "--site-host", "a"],
        ["--target", "h:1", "--target", "h:2", "--target", "h:3", "--site-host", "a", "--site-host", "b"],
        ["--target", "h:1", "--site-host", "a", "--rate", "nan"],
        ["--target", "h:1", "--site-host", "a\r\nx: y"],
    ],
)
def test_a_load_that_cannot_be_sent_is_refused_in_one_line(demo: Demo, arguments: list[str]) -> None:
    refused = subprocess.run(
        [sys.executable, "-m", "orchestrator.demo.load", *arguments, "--out", str(demo.out)],
        capture_output=True, text=True, check=False, timeout=30,
    )  # fmt: skip
    assert refused.returncode == 2
    assert "error: " in refused.stderr
    assert not demo.out.exists()
