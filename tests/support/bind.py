"""A real BIND 9: a primary that takes signed updates for `shop.test`, and a secondary that it notifies. Each is a
process of its own, on a port that the system chose (it listens only where an interface has an address), and ends with
the test."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import dns.name
import dns.query
import dns.rcode
import dns.tsig
import dns.update
import pytest

from providers.clients.dns import Nameservers, Server
from tests.support.haproxy import until
from tests.support.nameserver import KEY, SECRET, ZONE, settings

OWNER = dns.tsig.Key("owner.", SECRET, "hmac-sha256")
_COMMON = """\
key "changeover." {{ algorithm hmac-sha256; secret "{secret}"; }};
key "stranger." {{ algorithm hmac-sha256; secret "{secret}"; }};
key "owner." {{ algorithm hmac-sha256; secret "{secret}"; }};
controls {{ }};
options {{
  directory "{folder}";
  pid-file "{folder}/named.pid";
  session-keyfile "{folder}/session.key";
  listen-on port {port} {{ 127.0.0.1; }};
  listen-on-v6 {{ none; }};
  recursion no;
  dnssec-validation no;
  empty-zones-enable no;
  notify explicit;
  notify-delay 1;
  startup-notify-rate 1000; notify-rate 1000; serial-query-rate 1000;
  max-journal-size 1m;
}};
logging {{ category default {{ stderr_; }}; channel stderr_ {{ file "{folder}/log"; severity info; }}; }};
"""
_PRIMARY = """\
zone "shop.test" {{
  type primary; file "{folder}/zone";
  update-policy {{
    grant owner. zonesub ANY;
    grant changeover. zonesub A TXT;
  }};
  also-notify {{ 127.0.0.1 port {other}; }};
  allow-transfer {{ any; }};
}};
"""
_SECONDARY = """\
zone "shop.test" {{
  type secondary; file "{folder}/zone";
  primaries {{ 127.0.0.1 port {other}; }};
  allow-notify {{ any; }};
  min-refresh-time 1; max-refresh-time 1; min-retry-time 1; max-retry-time 1;
}};
"""
_ZONE = """\
$TTL 60
@ IN SOA ns1 admin 1 1 1 600 5
@ IN NS ns1
ns1 IN A 127.0.0.1
"""


class Bind:
    """`put` and `get` as its owner does, at the primary."""

    def __init__(self, primary: Server, secondary: Server) -> None:
        self.primary, self.secondary = primary, secondary
        self.servers = Nameservers(ZONE, primary=primary, servers=[secondary], key=KEY)

    def put(self, name: str, type: str, ttl: int, *values: str) -> None:
        update = dns.update.UpdateMessage(ZONE)
        update.replace(name, ttl, type, *values)
        update.use_tsig(OWNER)
        answer = dns.query.tcp(update, self.primary.address, port=self.primary.port, timeout=10)
        assert answer.rcode() == dns.rcode.NOERROR, answer

    def get(self, name: str, type: str = "A") -> tuple[int, set[str]]:
        found = self.servers.ask(self.primary, self.servers.name(name), type)
        return found.ttl, set(found.values)

    def settings(self, pools: dict[str, int], **changes: Any) -> dict[str, Any]:
        return {**settings(str(self.primary), str(self.secondary), pools), **changes}


@contextlib.contextmanager
def bind() -> Iterator[Bind]:
    """Skips where there is no BIND."""
    named = shutil.which("named", path="/usr/sbin:/usr/local/sbin:/usr/bin")
    if named is None:
        pytest.skip("no BIND 9 is installed (named)")
    ports = _free_ports(2)
    servers = [Server(address="127.0.0.1", port=port) for port in ports]
    found = Bind(*servers)
    folders = [Path(tempfile.mkdtemp(prefix="co-bind-", dir="/tmp")) for _ in ports]
    running: list[subprocess.Popen[bytes]] = []
    try:
        for role, folder, server, other in zip((_PRIMARY, _SECONDARY), folders, servers, reversed(ports), strict=True):
            said = {"folder": folder, "other": other, "port": server.port, "secret": SECRET}
            (folder / "named.conf").write_text((_COMMON + role).format(**said))
            if role is _PRIMARY:
                (folder / "zone").write_text(_ZONE)
            command = [named, "-f", "-c", str(folder / "named.conf"), "-n", "1"]
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=(folder / "said").open("ab"))
            running.append(process)
            answers = partial(_answers, found, server, folder, process)
            until(answers, what=f"{server} serves", seconds=60)
        yield found
    finally:
        for process in running:
            process.kill()
            process.wait()
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)


def _answers(found: Bind, server: Server, folder: Path, process: subprocess.Popen[bytes]) -> bool:
    assert process.poll() is None, [(folder / name).read_text() for name in ("said", "log") if (folder / name).exists()]
    with contextlib.suppress(Exception):
        return bool(found.servers.ask(server, dns.name.from_text(ZONE), "SOA").values)
    time.sleep(0.05)
    return False


def _free_ports(count: int) -> list[int]:
    """Free by TCP and UDP a moment ago."""
    found: list[int] = []
    with contextlib.ExitStack() as held:
        while len(found) < count:
            stream = held.enter_context(socket.socket())
            stream.bind(("127.0.0.1", 0))
            datagram = held.enter_context(socket.socket(type=socket.SOCK_DGRAM))
            with contextlib.suppress(OSError):
                datagram.bind(stream.getsockname())
                found.append(int(stream.getsockname()[1]))
    return found
