"""A Redis with the users of deploy/redis/users.acl, as deploy/make-secrets makes them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from orchestrator.embedded import valkey_server
from tests.support.redis_servers import HOST, free_port, wait_for
from tests.support.valkey import WRAPPER

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "deploy" / "redis" / "redis.conf"


@dataclass(frozen=True)
class Guarded:
    """`secrets` is the folder that the containers get their secrets from. `begin` starts it anew; `end` kills it."""

    port: int
    secrets: Path
    begin: Callable[[], None]
    end: Callable[[], None]

    def password(self, user: str) -> str:
        return "" if user == "health" else (self.secrets / f"redis-{user}").read_text().strip()

    def client(self, user: str, database: int = 0) -> redis.Redis:
        return redis.Redis(
            host=HOST,
            port=self.port,
            db=database,
            username=user,
            password=self.password(user),
            socket_timeout=5,
            retry=Retry(NoBackoff(), 0),
        )

    def refusals(self) -> list[str]:
        """What somebody was refused since the last call. redis-py offers its name and version; nobody needs that."""
        with self.client("admin") as admin:
            found = [f"{each['username']}: {each['object']}" for each in admin.acl_log()]
            admin.acl_log_reset()
        return sorted({each for each in found if "client|setinfo" not in each})


@contextmanager
def guarded_redis(folder: Path, *options: str, secrets: Path | None = None) -> Iterator[Guarded]:
    """Ends with the test process, however that ends. `secrets` are those of another."""
    port, secrets, data = free_port(), secrets or folder / "secrets", folder / "data"
    subprocess.run([ROOT / "deploy" / "make-secrets", secrets], check=True, capture_output=True, timeout=60)
    data.mkdir(parents=True)
    config = Path(shutil.copy(CONFIG, folder))  # Sentinel has it written anew
    words = [valkey_server(), config, "--port", port, "--bind", HOST, "--dir", data]
    argv = [str(word) for word in [*words, "--aclfile", secrets / "users.acl", *options]]
    started: list[subprocess.Popen[bytes]] = []

    def begin() -> None:
        end()
        with (folder / "redis.log").open("ab") as log:
            wrapped = [sys.executable, "-I", "-S", "-c", WRAPPER, str(os.getpid()), *argv]
            started.append(subprocess.Popen(wrapped, stdout=log, stderr=log))
        wait_for("Redis", lambda: started[-1].poll() is not None or bool(made.client("health").ping()), seconds=20)
        assert started[-1].poll() is None, (folder / "redis.log").read_text()

    def end() -> None:
        """Its data stays."""
        for process in started:
            process.kill()
            process.wait()

    made = Guarded(port, secrets, begin, end)
    try:
        begin()
        yield made
    finally:
        end()
