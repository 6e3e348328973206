"""Addresses of Redis, in one form for the records, Celery's messages and its results.

    redis://[USER:PASSWORD@]HOST[:6379][/DATABASE]
    rediss://…                                               the same by TLS
    unix://[USER:PASSWORD@]/PATH[?db=DATABASE]
    sentinel://[USER:PASSWORD@]HOST[:26379][,HOST…]/MASTER[/DATABASE]
    sentinels://…                                            the same, sentinels and servers by TLS

USER and PASSWORD are those of the server; what is neither letter nor digit in them is written %XX. Options after `?`:

    ssl_ca_certs, ssl_certfile, ssl_keyfile                  files, PEM; without the first the system's authorities
    ssl_cert_reqs=required|none, ssl_check_hostname=true|false
    sentinel_username, sentinel_password                     where the sentinels want one too
    kept_by=replicas                                         of the records: not by a file, as managed services do
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from orchestrator import secrets
from orchestrator.errors import BadInput

SCHEMES = {"redis": 6379, "rediss": 6379, "sentinel": 26379, "sentinels": 26379}
# What Python's ssl takes time and again is made once by redis-py, from these.
_TLS = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs", "ssl_check_hostname")
_SENTINEL = ("sentinel_username", "sentinel_password")
_KEPT = "kept_by"
_ESCAPE = "with what is neither letter nor digit in USER and PASSWORD as %XX"
SENTINEL_PATIENCE = 1.0  # seconds for one sentinel; the next is asked then


@dataclass(frozen=True, kw_only=True)
class Address:
    """`hosts` are the server's, or the sentinels'; empty for a unix socket, which is at `path`. `master` is the name
    that the sentinels know it by. `kept_by`: what keeps the records there, an append-only file unless it says
    `replicas`."""

    hosts: tuple[tuple[str, int], ...] = ()
    path: str = ""
    master: str = ""
    database: int = 0
    username: str = ""
    password: str = field(default="", repr=False)
    sentinel_username: str = ""
    sentinel_password: str = field(default="", repr=False)
    tls: Mapping[str, Any] | None = None
    kept_by: str = ""

    def __post_init__(self) -> None:
        for password in (self.password, self.sentinel_password):
            secrets.remember(password)
            secrets.remember(quote(password, safe=""))

    @property
    def where(self) -> str:
        """For people: without user, password and options."""
        if self.path:
            return f"unix://{self.path}"
        return f"{self._scheme}://{self._told_hosts}/" + (f"{self.master}/" if self.master else "") + f"{self.database}"

    @property
    def ping(self) -> str:
        """A command that shows whether it answers."""
        if self.path:
            return "changeover up"  # of our own Redis as a rule, which that keeps alive. redis-cli's -u takes no socket
        ca = f" --cacert {self.tls['ssl_ca_certs']}" if self.tls and "ssl_ca_certs" in self.tls else ""
        host, port = self.hosts[0]
        if self.master:
            tls = "" if self.tls is None else f" --tls{ca}"
            return f"redis-cli -h {host} -p {port}{tls} SENTINEL get-master-addr-by-name {self.master}"
        return f"redis-cli -u {self.where}{ca} PING"

    def same_server(self, other: Address) -> bool:
        """Whether both are databases of one server, reached in one way."""
        return replace(self, database=0) == replace(other, database=0)

    def url(self) -> str:
        """The text that it came from, or would have."""
        who = _credentials(self.username, self.password)
        secret = {name: getattr(self, name) for name in _SENTINEL if getattr(self, name)}
        if self.path:
            return f"unix://{who}{quote(self.path)}?{urlencode({'db': self.database})}"
        tls = {
            name: str(value).lower() if isinstance(value, bool) else value for name, value in (self.tls or {}).items()
        }
        kept = {_KEPT: self.kept_by} if self.kept_by else {}
        query = urlencode({**tls, **secret, **kept}, safe="/")
        middle = f"{quote(self.master, safe='')}/" if self.master else ""
        return f"{self._scheme}://{who}{self._told_hosts}/{middle}{self.database}" + (f"?{query}" if query else "")

    def connection(self) -> dict[str, Any]:
        """Options of a connection of redis-py to the server, but for where it is."""
        said: dict[str, Any] = {"db": self.database, **(self.tls or {})}
        said |= {"username": self.username} if self.username else {}
        return said | ({"password": self.password} if self.password else {})

    def sentinel(self) -> dict[str, Any]:
        """Options of a client of redis-py to a sentinel, but for where it is."""
        said: dict[str, Any] = {"socket_timeout": SENTINEL_PATIENCE, "socket_connect_timeout": SENTINEL_PATIENCE}
        said |= {} if self.tls is None else {"ssl": True, **self.tls}
        said |= {"username": self.sentinel_username} if self.sentinel_username else {}
        return said | ({"password": self.sentinel_password} if self.sentinel_password else {})

    def for_celery(self) -> tuple[str, dict[str, Any] | None, dict[str, Any]]:
        """The URL as Celery and kombu write it, their TLS options (`broker_use_ssl`), and their transport options."""
        who = _credentials(self.username, self.password)
        if self.path:
            return f"redis+socket://{who}{quote(self.path)}?virtual_host={self.database}", None, {}
        if not self.master:
            scheme = "redis" if self.tls is None else "rediss"
            return f"{scheme}://{who}{self._told_hosts}/{self.database}", self._celery_tls(), {}
        each = (f"sentinel://{who}{_host(host)}:{port}/{self.database}" for host, port in self.hosts)
        return ";".join(each), self._celery_tls(), {"master_name": self.master, "sentinel_kwargs": self.sentinel()}

    def _celery_tls(self) -> dict[str, Any] | None:
        """kombu checks no certificate unless it is told to."""
        return None if self.tls is None else {"ssl_cert_reqs": "required", **self.tls}

    @property
    def _scheme(self) -> str:
        return ("sentinel" if self.master else "redis") + ("" if self.tls is None else "s")

    @property
    def _told_hosts(self) -> str:
        return ",".join(f"{_host(host)}:{port}" for host, port in self.hosts)


def parse(url: str) -> Address:
    """Raises `BadInput`, which never repeats what might be a password."""
    scheme, mark, rest = url.partition("://")
    if not mark or scheme not in (*SCHEMES, "unix"):
        raise BadInput(
            f"{where(url)} is no address of a Redis", next=f"use redis://USER:PASSWORD@HOST:PORT/DATABASE, {_ESCAPE}"
        )
    rest, _, query = rest.partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    before, slash, after = rest.partition("/")
    who, at, hosts = before.rpartition("@")
    if at and not hosts and scheme != "unix":
        raise _wrong(url, "it names no host")
    if any(c in "#[]" or c.isspace() for c in who):  # each program would cut it elsewhere
        raise _wrong(url, "USER or PASSWORD is not escaped")
    user, _, password = who.partition(":")
    said: dict[str, Any] = {"username": unquote(user), "password": unquote(password)}
    if scheme == "unix":
        if hosts or not after:
            raise _wrong(url, "the socket's path begins with /")
        return Address(path=slash + unquote(after), database=_number(url, options.pop("db", "0")), **said)
    segments = [unquote(segment) for segment in after.split("/")] if after else []
    if scheme.startswith("sentinel"):
        if not segments or not segments[0]:
            raise _wrong(url, "it does not say by which name the sentinels know the server: sentinel://HOST:26379/NAME")
        said["master"] = segments.pop(0)
        said |= {name: options.pop(name) for name in _SENTINEL if name in options}
    elif "," in hosts:
        raise _wrong(url, "several hosts are several sentinels: sentinel://HOST:26379,HOST:26379/NAME")
    if len(segments) > 1:
        raise _wrong(url, "there is too much after the database's number")
    database = _number(url, options.pop("db", "") or (segments[0] if segments else "") or "0")
    tls = _tls(url, options) if scheme in ("rediss", "sentinels") else None
    if (kept := options.pop(_KEPT, "")) not in ("", "replicas"):
        raise _wrong(url, f"{_KEPT} is replicas, or is left out")
    if options:
        raise _wrong(url, f"the option {sorted(options)[0]} is unknown here")
    found = tuple(_host_and_port(url, host, SCHEMES[scheme]) for host in hosts.split(","))
    return Address(hosts=found, database=database, tls=tls, kept_by=kept, **said)


def with_database(url: str, number: int) -> str:
    """The same server, another database."""
    return replace(parse(url), database=number).url()


def with_password(url: str, password: str) -> str:
    """The same with that password, unless it has one."""
    address = parse(url)
    return url if address.password else replace(address, password=password).url()


def where(url: str) -> str:
    """The address without user, password and options, of whatever text that is."""
    scheme, mark, rest = url.partition("://")
    secret, _, told = rest.rpartition("@")
    if not mark or "?" in secret:  # an option with an @ in it, or a password with a ?
        return f"{scheme}://…" if mark and scheme in SCHEMES else "the given text"
    return scheme + mark + told.partition("?")[0]


def _host_and_port(url: str, text: str, port: int) -> tuple[str, int]:
    try:
        split = urlsplit(f"//{text}")
        host, port = split.hostname or "", split.port or port
    except ValueError:
        raise _wrong(url, "a port is a number up to 65535") from None
    if not host or split.path:
        raise _wrong(url, "it names no host")
    return host, port


def _tls(url: str, options: dict[str, str]) -> dict[str, Any]:
    said: dict[str, Any] = {name: options.pop(name) for name in _TLS if name in options}
    if said.get("ssl_cert_reqs", "required") not in ("required", "none"):
        raise _wrong(url, "ssl_cert_reqs is required or none")
    if "ssl_check_hostname" in said:
        if said["ssl_check_hostname"] not in ("true", "false"):
            raise _wrong(url, "ssl_check_hostname is true or false")
        said["ssl_check_hostname"] = said["ssl_check_hostname"] == "true"
    return said


def _number(url: str, text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 4:
        raise _wrong(url, "a database is a number")
    return int(text)


def _wrong(url: str, why: str) -> BadInput:
    return BadInput(
        f"{where(url)} is no address of a Redis: {why}", next=f"write it as docs/operating.md shows, {_ESCAPE}"
    )


def _credentials(user: str, password: str) -> str:
    return f"{quote(user, safe='')}:{quote(password, safe='')}@" if user or password else ""


def _host(host: str) -> str:
    return f"[{host}]" if ":" in host else host
