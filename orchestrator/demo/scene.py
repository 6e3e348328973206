"""The scene of the demo: a shop of twelve servers in two pools behind one HAProxy, its database, and its users."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from orchestrator.demo.host import Host
from orchestrator.demo.surroundings import Surroundings
from orchestrator.errors import ChangeoverError

POOLS: Mapping[str, int] = {"web": 8, "api": 4}
PORT = 8080
SMALL, BIG = (192, 64), (384, 128)  # MiB of memory and disk
HAPROXY = """\
# The demo's balancer. Changeover edits the `server` lines of the two backends, and nothing else.
global
  stats socket {socket} mode 600 level admin expose-fd listeners
  stats maxconn 500
  hard-stop-after 60s
defaults
  mode http
  option idle-close-on-response
  option redispatch 1
  retries 0
  timeout connect 2s
  timeout check 5s
  timeout client 60s
  timeout server 60s
  timeout queue 5s
  timeout tunnel 1h
"""


@dataclass
class Scene(Surroundings):
    """See `Surroundings`. `fronts`: by pool, the port on which HAProxy takes its users."""

    pools: Mapping[str, int] = field(default_factory=lambda: POOLS)
    check: str = "inter 200ms fastinter 100ms rise 2 fall 2"
    host: Host = field(init=False)
    fronts: dict[str, int] = field(default_factory=dict)
    opening: ClassVar[str] = "building a shop: 12 servers in two pools behind one HAProxy, and a separate database"

    def __post_init__(self) -> None:
        self.host = Host(self.short / "host")

    # -- building -------------------------------------------------------------------------------------------------

    def build(self) -> None:
        """Everything serves: host, database, servers, balancer."""
        self._watch("--host", str(self.host.folder))
        self.host.start()
        self.database = f"127.0.0.1:{self._start_database()}"
        lines: dict[str, list[str]] = {}
        for pool, count in self.pools.items():
            for number in range(1, count + 1):
                name = f"{pool}-{number:03d}"
                server = self._create(name)
                self.names.append(name)
                self.ids[name] = str(server["id"])
                lines.setdefault(pool, []).append(f"  server {name} {server['address']}:{PORT} check {self.check}")
        for server in self.host.servers():
            try:
                self._wait_for(str(server["address"]), PORT, seconds=20.0 + len(self.names))  # they start side by side
            except ChangeoverError as error:
                raise ChangeoverError(f"{error}. {self.host.last_words(str(server['id']))}") from error
        self._balance(lines)

    def _create(self, name: str) -> Mapping[str, Any]:
        files = self._files()
        command = [sys.executable, "{root}/site.py", "--address", "{address}", "--port", "{port}"]
        command += ["--root", "{root}", "--database", self.database]
        return self.host.create_server(name, command=command, port=PORT, memory=SMALL[0], disk=SMALL[1], files=files)

    def spoil(self, name: str) -> None:
        """Bind that server's licence to its address: a clone of it will not be healthy."""
        server = next(server for server in self.host.servers() if server["id"] == self.ids[name])
        (self.host.folder / "servers" / self.ids[name] / "root" / "LICENCE").write_text(str(server["address"]))

    def _balance(self, lines: Mapping[str, list[str]]) -> None:
        runtime = self.short / "haproxy"
        runtime.mkdir()
        text = HAPROXY.format(socket=self.haproxy_socket)
        for pool in self.pools:
            self.fronts[pool] = _free_port()
            text += f"frontend {pool}\n  bind 127.0.0.1:{self.fronts[pool]}\n  default_backend {pool}\n"
        for pool in self.pools:
            check = "  option httpchk\n  http-check send meth GET uri /health ver HTTP/1.1 hdr Host shop.test\n"
            text += f"backend {pool}\n  balance roundrobin\n{check}" + "\n".join(lines[pool]) + "\n"
        self.haproxy_config.write_text(text)
        self.host.balance(config=self.haproxy_config, runtime=runtime)
        for port in self.fronts.values():
            self._wait_for("127.0.0.1", port)
        until = time.monotonic() + 10
        while not self.haproxy_socket.exists() and time.monotonic() < until:
            time.sleep(0.02)

    @property
    def haproxy_socket(self) -> Path:
        return self.short / "haproxy" / "admin.sock"

    @property
    def haproxy_config(self) -> Path:
        return self.short / "haproxy" / "haproxy.cfg"

    def fleet_file(self) -> Path:
        """The file that the demo applies: kept beside the report, to be read and reused."""
        servers = "\n".join(
            f"  - {{name: {name}, id: {self.ids[name]}, pools: [{name.split('-')[0]}]}}" for name in self.names
        )
        pools = "\n".join(
            f"    {pool}: {{port: {PORT}, min_healthy: {max(1, count - 2)}}}" for pool, count in self.pools.items()
        )
        text = FLEET.format(
            port=PORT,
            servers=servers,
            pools=pools,
            memory=BIG[0],
            disk=BIG[1],
            host=self.host.folder,
            socket=self.haproxy_socket,
            config=self.haproxy_config,
        )
        path = self.out / "fleet.yaml"
        path.write_text(text)
        return path

    def send_users(self) -> None:
        """Open-loop traffic on both pools, from now until `dismiss_users`."""
        self._send_users(f"127.0.0.1:{port}" for port in self.fronts.values())

    # -- the end --------------------------------------------------------------------------------------------------

    def made_for(self) -> list[str]:
        """Whose new servers are there: the name of the old one, once for each."""
        made = [s for s in self.host.servers() if s["tags"].get("changeover:managed") == "1"]
        return sorted(str(s["tags"].get("changeover:server")) for s in made)

    def clear(self) -> None:
        """Nothing of it runs any more."""
        super().clear()
        self.host.reap()


FLEET = """\
# The shop of `changeover demo`, to be replaced, server by server, by servers of twice the size.
version: 1
fleet: shop
provider:
  name: local
  settings: {{host: {host}}}
target:
  size: {{memory: {memory}MiB, disk: {disk}MiB}}
servers:
{servers}
traffic:
  provider: haproxy
  settings: {{socket: {socket}, config: {config}}}
  pools:
{pools}
checks:
  guest:
    disk_free: 16MiB
    memory_free: 64MiB
    permissions: [{{path: secret.key, mode: "0640"}}]
    like_old: [secret.key, site.py, release.json]
    listening: [{port}]   # a machine that is busy takes its time to start it
  smoke:
    passes: 3
    every: 250ms
    requests:
      - {{url: "http://shop.test/health"}}
      - {{url: "http://shop.test/", same_as_old: true, timeout: 2s}}
      - {{url: "http://shop.test/api/item/7", same_as_old: true, timeout: 2s, contains: ["cents"]}}
state: stateless   # orders live in the shop's database
rollout:
  waves: [1, 4, rest]
  bake: 2s
  soak: 2s
  max_in_flight: 7
  budget: {{before_swap: 1}}
  poll: 250ms
  back_off: 500ms
  drain: {{deadline: 20s, at_deadline: keep, quiet: 500ms}}
retain:
  old_servers: 24h
"""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
