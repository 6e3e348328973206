"""What a look inside many servers costs the host."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from providers.local_host import guest, processes
from providers.local_host.api import Api, Host


def test_a_look_inside_a_hundred_servers_looks_once_at_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once a server it took longer than a caller waits: with as many servers there are as many processes."""
    records = [
        SimpleNamespace(id=f"srv-{n}", state="running", boot=f"b{n}", address=f"127.1.0.{n}") for n in range(100)
    ]
    looks, pids = [], processes._pids

    def counted() -> Iterator[int]:
        looks.append(1)
        return pids()

    monkeypatch.setattr(processes, "_pids", counted)
    monkeypatch.setattr(guest, "facts", lambda record, *_, **__: {"server": record.id})
    servers: Any = SimpleNamespace(all=lambda: records, proc=lambda _id: object(), root=lambda _id: None)
    host = Host(servers=servers, images=servers, balancers=servers, end=lambda: None, about={})
    answer = Api(host).answer("POST", "/facts", {"ids": [record.id for record in records], "paths": []})
    assert [one["server"] for one in answer] == [record.id for record in records]
    assert len(looks) == 1
