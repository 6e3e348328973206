"""Whether a server is well, by its own answer at its port: for switches that do not ask by themselves."""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property

from providers.errors import Refused

CHECK_SECONDS = 2.0
LOOKS_AT_ONCE = 16
_CHECK = re.compile(r"tcp|none|/[^\s\x00-\x1f\x7f]{0,500}")
Place = tuple[str, int]


class Health:
    """`check`: `tcp`, `none`, or a path that must be answered with 2xx or 3xx. `Refused` for anything else."""

    def __init__(self, check: object) -> None:
        if not isinstance(check, str) or not _CHECK.fullmatch(check):
            raise Refused(f"traffic settings: check is tcp, none or a path, not {check!r}")
        self._check = check

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(max_workers=LOOKS_AT_ONCE, thread_name_prefix="check")

    def ask(self, places: Collection[Place]) -> Mapping[Place, str]:
        """What is wrong with each (address, port), all asked at once; empty if nothing is."""
        if self._check == "none":
            return dict.fromkeys(places, "")
        return dict(zip(places, self._threads.map(self._one, places), strict=True))

    def _one(self, place: Place) -> str:
        """Asked twice before it is believed: a datagram, or a worker's turn, may be late."""
        return _unwell(self._check, *place) and _unwell(self._check, *place)


def _unwell(check: str, address: str, port: int) -> str:
    where = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
    try:
        if check == "tcp":
            socket.create_connection((address, port), timeout=CHECK_SECONDS).close()
            return ""
        with contextlib.closing(http.client.HTTPConnection(address, port, timeout=CHECK_SECONDS)) as link:
            link.request("GET", check, headers={"User-Agent": "changeover-check", "Connection": "close"})
            status = link.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        return f"{where} does not answer ({error or type(error).__name__})"
    return "" if 200 <= status < 400 else f"{where} answers {check} with {status}"
