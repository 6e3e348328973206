"""Builds the fleet of local-haproxy.yaml in a running `changeover host`: `python examples/local_fleet.py DIR [HOST]`.

It does what a customer of any cloud has done before Changeover comes in: it asks the host's API (whose calls are listed
on top of providers/local_host/api.py) for three servers and a load balancer. DIR must be new and its path short, since
HAProxy takes socket paths of 97 bytes at most; it receives the site, HAProxy's configuration and fleet.yaml. HOST is
the host's state folder.
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import Any

import httpx2

MIB = 1 << 20
PORT = 8080
HAPROXY = """\
global
  stats socket {socket} mode 600 level admin
  stats maxconn 100
defaults
  mode http
  option redispatch 1
  timeout connect 2s
  timeout client 60s
  timeout server 60s
  timeout check 2s
frontend shop
  bind 127.0.0.1:{front}
  default_backend web
backend web
  balance roundrobin
  option httpchk
  http-check send meth GET uri /index.html ver HTTP/1.1 hdr Host shop.test
"""


def main(folder: Path, host: Path) -> None:
    api = httpx2.Client(transport=httpx2.HTTPTransport(uds=str(host / "host.sock")), base_url="http://host", timeout=30)
    site = folder / "site"
    if site.exists():
        sys.exit(f"{folder} is not new; its fleet is as it was. Give another folder")
    ask(api, "GET", "/servers")  # before a folder is made that a second try would find
    site.mkdir(parents=True)
    (site / "index.html").write_text("<h1>The corner shop</h1>\n")
    (site / "private.txt").write_text("not for others\n")
    (site / "private.txt").chmod(0o640)
    servers = {name: create(api, name, site) for name in ("web-1", "web-2", "web-3")}

    front, admin, config = free_port(), folder / "admin.sock", folder / "haproxy.cfg"
    check = "check inter 200ms fastinter 100ms rise 2 fall 2"
    lines = [f"  server {name} {found['address']}:{PORT} {check}\n" for name, found in servers.items()]
    config.write_text(HAPROXY.format(socket=admin, front=front) + "".join(lines))
    ask(api, "PUT", "/haproxy/shop", {"config": str(config), "runtime": str(folder)})

    text = Path(__file__).with_name("local-haproxy.yaml").read_text()
    for name, found in servers.items():
        text = text.replace(f"ID-OF-{name}", found["id"])
    for word, path in (("/HOST", host), ("/SOCKET", admin), ("/CONFIG", config)):
        text = text.replace(f"{word}}}", f"{path}}}").replace(f"{word},", f"{path},")
    (folder / "fleet.yaml").write_text(text)
    print(f"the shop: http://127.0.0.1:{front}/index.html\nits fleet file: {folder / 'fleet.yaml'}")


def create(api: httpx2.Client, name: str, site: Path) -> Any:
    """A server on a copy of that folder. `{address}`, `{port}` and `{root}` become its own, B's on B."""
    command = [sys.executable, "-m", "http.server", "{port}", "--bind", "{address}", "--directory", "{root}"]
    size = {"memory": 128 * MIB, "disk": 32 * MIB, "type": ""}
    body = {"name": name, "command": command, "port": PORT, "size": size, "files_from": str(site)}
    return ask(api, "POST", "/servers", body)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def ask(api: httpx2.Client, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
    try:
        answer = api.request(method, path, json=body)
    except httpx2.TransportError as error:
        sys.exit(f"no local cloud answers: {error}. Next: changeover host --detach")
    if answer.status_code != httpx2.codes.OK:
        sys.exit(f"the host refused {method} {path}: {answer.text}")
    return answer.json()


if __name__ == "__main__":
    if not 2 <= len(sys.argv) <= 3:
        sys.exit(__doc__)
    default = Path(os.environ.get("CHANGEOVER_STATE_DIR", "~/.local/state/changeover")) / "host"
    main(Path(sys.argv[1]).absolute(), Path(sys.argv[2] if len(sys.argv) == 3 else default).expanduser())
