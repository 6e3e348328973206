"""A process that owns fake clouds, so that several workers share one and it outlives each of them.

    python -m providers.fake_host SOCKET [--evidence FOLDER]

The fake providers reach it where their settings name the `socket`; `world` says which of its clouds is meant, as it
does inside one process. The role `operator` is for tests and benchmarks: it sets up servers, makes calls fail, and
counts. With `--evidence`, every effect, change of a pool and smoke test is appended to `cloud.jsonl`,
`balancer.jsonl` and `probes.jsonl` in FOLDER/WORLD.
"""

from __future__ import annotations

import argparse
import json
import signal
import socketserver
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from providers.clients.fake_cloud import pack, told, unpack
from providers.compute import Image, Server, Stopping
from providers.compute.fake import FakeCloud, FakeCompute, GiB
from providers.errors import ProviderError, Refused, Throttled, Transient
from providers.guest.fake import FakeGuest
from providers.probe.answer import Answer
from providers.probe.fake import FakeProbe, FakeSites, Target
from providers.traffic import MemberView
from providers.traffic.fake import FakeTraffic
from providers.traffic.joint import Coming

Kind = Literal["before", "after", "throttle", "slow", "silent"]
ROLES: Mapping[str, Callable[[Mapping[str, Any]], Any]] = MappingProxyType(
    {"compute": FakeCompute, "guest": FakeGuest, "traffic": FakeTraffic, "probe": FakeProbe}
)
CHANGES = frozenset(
    {"ensure_image", "ensure_server", "start", "terminate", "delete_image", "protect", "tag"}
)  # the calls of a compute provider that have an effect
OF_MANY = MappingProxyType(  # those that have one on each of many, and what they are called in faults and evidence
    {"stop_all": "stop", "add_all": "add", "restore_all": "restore", "remove_all": "remove"}
)
OK = Answer(status=200, headers=(("content-type", "text/plain"),), body=b"ok")


@dataclass
class Fault:
    """What the next `times` calls of that name meet, after `skip` others; `*` in the name stands for anything.

    before: 5xx, and nothing happened. after: it happened, and its answer is lost. throttle: asked too often. slow: it
    happens after `seconds`. silent: it happens, and the connection is cut instead of an answer."""

    call: str
    kind: Kind
    times: int = 1
    skip: int = 0
    seconds: float = 0.0


class Silence(Exception):
    """The connection ends without an answer."""


class _Sites(FakeSites):
    """Whatever runs answers well, unless it was told to do otherwise; what does not run refuses the connection."""

    def __init__(self, cloud: FakeCloud) -> None:
        super().__init__()
        self._cloud = cloud

    def ask(self, target: Target) -> Answer:
        if not self._cloud.alive(target[0]):
            return Answer(fault="no connection: Connection refused")
        if target not in self._answers:
            self.calls[target] += 1
            return OK
        return super().ask(target)


@dataclass
class Operator:
    """A cloud as those see it who run it."""

    cloud: FakeCloud
    sites: FakeSites
    faults: list[Fault] = field(default_factory=list)
    spoiled: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.cloud.spoil = lambda source: self.spoiled.get(source, "")

    def server(
        self, name: str, *, pools: Mapping[str, int] | None = None, memory: int = GiB, disk: int = 10 * GiB
    ) -> Server:
        """A server of the fleet's own, which serves in each of `pools` at that port."""
        with self.cloud.lock:
            made = self.cloud.server(name, memory=memory, disk=disk)
            for pool, port in (pools or {}).items():
                self.cloud.pools.setdefault(pool, {})[name] = MemberView(
                    name=name, address=made.address, port=port, state="serving"
                )
            return made

    def fault(self, call: str, kind: Kind, *, times: int = 1, skip: int = 0, seconds: float = 0.0) -> None:
        with self.cloud.lock:
            self.faults.append(Fault(call=call, kind=kind, times=times, skip=skip, seconds=seconds))

    def left(self) -> list[str]:
        """The calls whose faults have not struck as often as they were told."""
        with self.cloud.lock:
            return [fault.call for fault in self.faults]

    def calm(self) -> None:
        """No more faults."""
        with self.cloud.lock:
            self.faults.clear()

    def spoil(self, source: str, state: str) -> None:
        """Servers made like that one end in this state instead of running."""
        self.spoiled[source] = state

    def answers(self, address: str, port: int, *answers: Answer) -> None:
        self.sites.answers(address, port, *answers)

    def session(self, pool: str, name: str, count: int) -> None:
        """So many user requests are in flight at that member."""
        with self.cloud.lock:
            if name in self.cloud.pools[pool]:
                self.cloud.pools[pool][name] = replace(self.cloud.pools[pool][name], sessions=count)

    def health(self, address: str, healthy: bool) -> None:
        """From now on the balancer's check of that address passes, or fails."""
        with self.cloud.lock:
            (self.cloud.sick.discard if healthy else self.cloud.sick.add)(address)

    def asked(self, address: str, port: int) -> int:
        """How often that was probed."""
        return self.sites.calls[address, port]

    def calls(self) -> dict[str, int]:
        """How often each provider call was made. A look at many servers at once is one call."""
        return {**self.cloud.calls, "probe": self.sites.calls.total()}

    def made(self) -> dict[str, int]:
        """What each token has made: never more than one."""
        return dict(self.cloud.made)

    def inventory(self) -> list[Server | Image]:
        """Everything that ever was and was not deleted, terminated servers too."""
        with self.cloud.lock:
            return [self.cloud.now(thing) for thing in self.cloud.things.values()]

    def strike(self, name: str) -> Fault | None:
        """The fault that this call meets."""
        with self.cloud.lock:
            for fault in self.faults:
                if not fnmatchcase(name, fault.call):
                    continue
                if fault.skip:
                    fault.skip -= 1
                    return None
                fault.times -= 1
                if not fault.times:
                    self.faults.remove(fault)
                return fault
        return None


class Evidence:
    """What happened, written while the cloud's lock is held: the order of lines is that of effects."""

    def __init__(self, folder: Path, world: str) -> None:
        self._folder, self._cloud = folder, FakeCloud.named[world]
        self._pools: dict[str, Mapping[str, Any]] = {}
        self._traffic = FakeTraffic({"world": world})
        folder.mkdir(parents=True, exist_ok=True)

    def effect(self, call: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], do: Callable[[], Any]) -> Any:
        """Makes the call, which is one of `CHANGES`, and notes what it did."""
        key = args[0] if call.startswith("ensure_") else None
        before = self._state(key, args)
        row: dict[str, Any] = {"at": time.time(), "call": call, "id": "" if key else args[0]}
        row |= {"token": key.token, "name": key.name, "tags": dict(key.tags)} if key else {"token": "", **before[1]}
        if key:
            row["source"] = kwargs.get("source") or kwargs.get("like")
        try:
            answer = do()
        except Transient:
            row["outcome"] = "failed"
            raise
        except ProviderError as error:
            row |= {"outcome": "refused", "why": str(error)}
            raise
        else:
            row["outcome"] = "done"
            if key:
                row |= {"id": answer.id, "outcome": "adopted" if self._state(key, args) == before else "made"}
                row |= {"address": answer.address, "boot": answer.boot} if isinstance(answer, Server) else {}
            elif call == "start":
                row["boot"] = self._boot(args[0])
            return answer
        finally:
            row["effect"] = self._state(key, args) != before
            self._write("cloud", row)
            self.balance()

    def many(self, call: str, asked: Collection[Any], do: Callable[[], Mapping[Any, Any]]) -> Any:
        """Makes the call, which is one of `OF_MANY`, and notes what it did to each."""
        at, before = time.time(), {one: self._of_many(one) for one in asked}
        said: Mapping[Any, Any] = {}
        error: ProviderError | None = None
        try:
            said = do()
        except ProviderError as raised:
            error = raised
            raise
        else:
            return said
        finally:
            for one, (was, about) in before.items():
                now, later = self._of_many(one)
                told = later if was is None else about
                row = {"at": at, "call": call, **told, "effect": now != was, "outcome": "done"}
                if isinstance(refused := said.get(one, error), ProviderError):
                    row |= {"outcome": "refused", "why": str(refused)}
                self._write("cloud", row)
            self.balance()

    def _of_many(self, one: Any) -> tuple[Any, dict[str, Any]]:
        """How that is now, and what is to be told of it."""
        if isinstance(one, Stopping):
            state, about = self._state(None, (one.id,))
            return state, {"id": one.id, "token": "", **about}
        name = one.member.name if isinstance(one, Coming) else one.name
        there = self._cloud.pools.get(one.pool, {}).get(name)
        return there, {"pool": one.pool, "id": name, "address": getattr(there, "address", "")}

    def balance(self) -> None:
        """Notes the pools that look different now."""
        for pool in self._cloud.pools:
            members = {
                view.name: {"address": view.address, "port": view.port, "state": view.state}
                for view in self._traffic.views(pool)
            }
            if members != self._pools.get(pool):
                self._pools[pool] = members
                self._write("balancer", {"at": time.time(), "pool": pool, "members": members})

    def probed(self, address: str, passed: bool) -> None:
        boot = self._boot(self._cloud.addresses.get(address, ""))
        self._write("probes", {"at": time.time(), "address": address, "boot": boot, "passed": passed})

    def _boot(self, id: str) -> str:
        thing = self._cloud.things.get(id)
        return thing.view.boot if thing is not None and isinstance(thing.view, Server) else ""

    def _state(self, key: Any, args: tuple[Any, ...]) -> tuple[Any, Mapping[str, Any]]:
        if key is not None:
            return self._cloud.made.get(key.token, 0), {}
        thing = self._cloud.things.get(args[0])
        if thing is None:
            return None, {"name": "", "tags": {}}
        view = self._cloud.now(thing)
        return (view, thing.protected), {"name": view.name, "tags": dict(view.tags)}

    def _write(self, name: str, row: Mapping[str, Any]) -> None:
        with (self._folder / f"{name}.jsonl").open("a") as out:
            out.write(json.dumps(row) + "\n")


class World:
    """One cloud and what is said and known about it."""

    def __init__(self, name: str, settings: Mapping[str, Any], evidence: Path | None) -> None:
        self.cloud = FakeCloud.of({**settings, "world": name})
        self.sites = FakeProbe.registry[name] = _Sites(self.cloud)
        self.operator = Operator(self.cloud, self.sites)
        self.evidence = None if evidence is None else Evidence(evidence / name, name)

    def provider(self, role: str, settings: Mapping[str, Any]) -> Any:
        if role == "operator":
            return self.operator
        if role not in ROLES:
            raise Refused(f"a fake cloud has no {role}")
        return ROLES[role](settings)

    def call(self, role: str, provider: Any, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        found = getattr(provider, name)
        if role == "operator" or not callable(found):
            return found(*args, **kwargs) if callable(found) else found
        called = OF_MANY.get(name, name)
        fault = self.operator.strike(called)
        kind = fault.kind if fault is not None else ""
        if kind == "before":
            raise Transient(f"{called} answered 503", ambiguous=False)
        if kind == "throttle":
            raise Throttled(f"{called} was asked too often")
        if fault is not None and kind == "slow":
            time.sleep(fault.seconds)
        answer = self._do(role, name, args, kwargs, lambda: found(*args, **kwargs))
        if kind == "after":
            raise Transient(f"the answer to {called} was lost", ambiguous=True)
        if kind == "silent":
            raise Silence
        return answer

    def _do(self, role: str, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], do: Callable[[], Any]) -> Any:
        evidence = self.evidence
        if evidence is None:
            return do()
        with self.cloud.lock:
            if role == "compute" and name in CHANGES:
                return evidence.effect(name, args, kwargs, do)
            if name in OF_MANY:
                return evidence.many(OF_MANY[name], args[0], do)
            answer = do()
            if role == "traffic":
                evidence.balance()
            elif role == "probe" and name == "check":
                evidence.probed(args[0], answer.passed)
            return answer


class Host(socketserver.ThreadingUnixStreamServer):
    """All the worlds of one process."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, path: Path, evidence: Path | None = None) -> None:
        self._evidence = evidence
        self._worlds: dict[str, World] = {}
        self._lock = threading.Lock()
        super().__init__(str(path), _Caller)

    def world(self, settings: Mapping[str, Any]) -> World:
        name = settings["world"]
        if name in (".", "..") or "/" in name:  # it is a folder of the evidence too
            raise Refused(f"no world is called {name!r}")
        with self._lock:
            if name not in self._worlds:
                self._worlds[name] = World(name, settings, self._evidence)
            return self._worlds[name]


class _Caller(socketserver.StreamRequestHandler):
    """One connection: who is meant, then one call a line."""

    server: Host

    def handle(self) -> None:
        hello = self.rfile.readline()
        if hello and self._answer(lambda: self._greet(json.loads(hello))):
            for line in self.rfile:
                if not self._answer(lambda line=line: self._call(*json.loads(line))):  # type: ignore[misc] # it is bytes
                    return

    def _greet(self, hello: Mapping[str, Any]) -> None:
        world = str(hello["settings"].get("world", "default"))
        settings = {**hello["settings"], "world": world, "sites": world}
        self.role = hello["role"]
        self.world = self.server.world(settings)
        self.provider = self.world.provider(self.role, settings)

    def _call(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        if name.startswith("_"):
            raise Refused(f"{name} is no call")
        arguments = tuple(unpack(each) for each in args)
        named = {key: unpack(each) for key, each in kwargs.items()}
        return self.world.call(self.role, self.provider, name, arguments, named)

    def _answer(self, do: Callable[[], Any]) -> bool:
        """Says what came of it; False where this is the end of the connection."""
        try:
            answer: Any = [True, pack(do())]
        except Silence:
            return False
        except ProviderError as error:
            answer = [False, told(error)]
        except Exception as error:  # the caller is told; this process serves others
            answer = [False, {"kind": "", "message": f"{type(error).__name__}: {error}"}]
        try:
            self.wfile.write(json.dumps(answer).encode() + b"\n")
        except OSError:
            return False  # the caller has died meanwhile, as workers in tests do
        return True


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m providers.fake_host", description=__doc__)
    parser.add_argument("socket", type=Path)
    parser.add_argument("--evidence", type=Path)
    chosen = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if chosen.socket.is_socket():  # of a run that was killed
        chosen.socket.unlink()
    with Host(chosen.socket, chosen.evidence) as host:
        try:
            host.serve_forever()
        except KeyboardInterrupt:
            pass
        finally:
            chosen.socket.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
