"""A cloud in memory, for tests, simulations and benchmarks: it takes its time, keeps to the contract, and misbehaves
on request. One `FakeCloud` holds servers, images and balancer; the fake providers of all roles look at the same one.
Settings with a `socket` mean the one of another process, that of `python -m providers.fake_host`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

from providers import Caps, Finding, Key
from providers.clients.fake_cloud import PAUSE, Remote
from providers.clients.rounds import Rounds, each, own
from providers.compute import Given, Image, Server, Size, Stopping, Subnet
from providers.errors import Conflict, GuardRefused, NoCapacity, NotFound, ProviderError, Refused, Transient
from providers.rights import Rights

GiB = 1024**3
Fault = Literal["", "before", "after"]


@dataclass
class _Thing:
    """A server or an image, with when it becomes ready and of what it was made."""

    view: Server | Image
    ready_at: float = 0.0
    made_of: tuple[object, ...] = ()
    ready_state: str = "running"

    @property
    def protected(self) -> bool:
        return isinstance(self.view, Server) and self.view.protected


@dataclass
class Freeze:
    """One time for which a server stood still. `until`: when it lets go by itself, or has been let go."""

    server: str
    key: str
    since: float
    until: float
    ordered: bool = False  # somebody let it go in time


@dataclass
class FakeCloud:
    """`image_seconds` and `ready_seconds` are how long an image and a start take. `fault` is asked before every call,
    by its name: it may raise, or say "after" to let the effect happen and the answer be lost. `spoil` is asked with the
    id of A for the state that B ends in, if not running. `calls` counts calls by name, and `made` what each token has
    made, which must never exceed one."""

    image_seconds: float = 0.0
    ready_seconds: float = 0.0
    clock: Callable[[], float] = time.time
    fault: Callable[[str], Fault] = lambda _name: ""
    spoil: Callable[[str], str] = lambda _source: ""
    things: dict[str, _Thing] = field(default_factory=dict)
    made: dict[str, int] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    pools: dict[str, dict[str, Any]] = field(default_factory=dict)
    obstacles: dict[str, tuple[str, ...]] = field(default_factory=dict)  # server -> why it cannot be made anew
    subnets: dict[str, Subnet] = field(default_factory=dict)  # by id; "" is where servers are that name none
    capacity: dict[tuple[str, str], int] = field(default_factory=dict)  # (zone, type) -> how many more can be made
    unreached: dict[tuple[str, str], str] = field(default_factory=dict)  # (pool, zone) -> why nobody is sent there
    prepared: dict[str, dict[str, float]] = field(default_factory=dict)  # pool -> for whom, and since when it is ready
    believed: dict[tuple[str, str], float] = field(default_factory=dict)  # until when a name that has left leads there
    freezes: list[Freeze] = field(default_factory=list)
    moments: dict[str, tuple[str, float, float]] = field(default_factory=dict)  # image -> its source, asked for, taken
    sick: set[str] = field(default_factory=set)  # addresses that run and fail the balancer's check
    lock: threading.RLock = field(default_factory=threading.RLock)
    recipe: str = ""  # what servers are made of beside an image
    addresses: dict[str, str] = field(default_factory=dict)  # address -> server: a thousand servers are looked up in it
    _tokens: dict[str, str] = field(default_factory=dict)  # token -> what it has made
    _serial: int = 0

    named: ClassVar[dict[str, FakeCloud]] = {}

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> FakeCloud:
        """The cloud that these settings name; made with its seconds at the first asking."""
        name = str(settings.get("world", "default"))
        if name not in cls.named:
            cls.named[name] = cls(
                image_seconds=float(settings.get("image_ms", 0)) / 1000,
                ready_seconds=float(settings.get("ready_ms", 0)) / 1000,
            )
        return cls.named[name]

    def room(self, size: Size) -> int:
        """How many of that size can still be made where it is to be: of its type in that zone, and by free addresses;
        many, where nobody has set a limit."""
        there = self.subnets.get(size.subnet)
        if there is None:
            return 1_000_000
        return min(there.free, self.capacity.get((there.zone, size.type), there.free))

    def take(self, size: Size) -> None:
        there = self.subnets.get(size.subnet)
        if there is not None:
            self.subnets[size.subnet] = replace(there, free=there.free - 1)
            if (there.zone, size.type) in self.capacity:
                self.capacity[there.zone, size.type] -= 1

    def call(self, name: str) -> Fault:
        """Counts the call; raises what the fault wants raised."""
        self.calls[name] = self.calls.get(name, 0) + 1
        return self.fault(name)

    def answer(self, fault: Fault, name: str) -> None:
        """Loses the answer after the effect."""
        if fault == "after":
            raise Transient(f"the answer to {name} was lost", ambiguous=True)

    def server(self, name: str, *, memory: int = GiB, disk: int = 10 * GiB) -> Server:
        """A running server that nobody of us has made: one of the fleet's own."""
        with self.lock:
            view = Server(
                id=name,
                name=name,
                state="running",
                address=self._address(),
                size=Size(memory=memory, disk=disk),
                boot=f"{name}#1",
                launched=self.clock(),
            )
            self.things[name] = _Thing(view=view)
            self.addresses[view.address] = name
            return view

    def frozen(self, server: str) -> Freeze | None:
        """What is on in that server now. Nobody freezes what was off since."""
        last = next((each for each in reversed(self.freezes) if each.server == server), None)
        return last if last is not None and last.until > self.clock() else None

    def _address(self) -> str:
        self._serial += 1
        return f"127.80.{self._serial // 250}.{self._serial % 250 + 1}"

    def new_id(self, kind: str) -> str:
        self._serial += 1
        return f"{kind}-{self._serial:06d}"

    def now(self, thing: _Thing) -> Server | Image:
        """What it is by now: pending things become ready when their time has come."""
        view = thing.view
        if view.state == "pending" and self.clock() >= thing.ready_at:
            view = replace(view, state=thing.ready_state)  # type: ignore[arg-type] # one of the states of its kind
            thing.view = view
        return view

    def alive(self, address: str) -> bool:
        """Whether a server runs there."""
        thing = self.things.get(self.addresses.get(address, ""))
        return thing is not None and self.now(thing).state == "running"

    def healthy(self, address: str) -> bool:
        """Whether the balancer's check of it passes."""
        return address not in self.sick and self.alive(address)

    def get(self, id: str) -> _Thing | None:
        thing = self.things.get(id)
        return thing if thing is not None and thing.view.state != "terminated" else None


class _Joint:
    """Servers that threads want stopped at the same moment are stopped in one call."""

    def __init__(self, stop: Callable[[Collection[Stopping]], Mapping[Stopping, ProviderError | None]]) -> None:
        self._stopping = Rounds(stop, pause=PAUSE)

    def stop(self, id: str, *, given: Given | None = None) -> None:
        own(self._stopping, Stopping.of(id, given))


class _Remote(_Joint, Remote):
    def __init__(self, settings: Mapping[str, Any]) -> None:
        Remote.__init__(self, "compute", settings)
        _Joint.__init__(self, self.stop_all)


class FakeCompute(_Joint):
    def __new__(cls, settings: Mapping[str, Any]) -> Any:
        return _Remote(settings) if "socket" in settings else super().__new__(cls)

    def __init__(self, settings: Mapping[str, Any]) -> None:
        super().__init__(self.stop_all)
        self.cloud = FakeCloud.of(settings)

    @property
    def caps(self) -> Caps:
        return Caps()

    def servers(self, ids: Sequence[str], *, protection: bool = False) -> Mapping[str, Server]:  # noqa: ARG002
        return {id: thing for id, thing in self._look("servers", ids).items() if isinstance(thing, Server)}

    def images(self, ids: Sequence[str]) -> Mapping[str, Image]:
        return {id: thing for id, thing in self._look("images", ids).items() if isinstance(thing, Image)}

    def _look(self, name: str, ids: Sequence[str]) -> Mapping[str, Server | Image]:
        with self.cloud.lock:
            self.cloud.call(name)
            return {id: self.cloud.now(self.cloud.things[id]) for id in ids if id in self.cloud.things}

    def inventory(self, tags: Mapping[str, str]) -> Sequence[Server | Image]:
        with self.cloud.lock:
            self.cloud.call("inventory")
            views = [self.cloud.now(thing) for thing in self.cloud.things.values()]
            return [v for v in views if v.state != "terminated" and all(v.tags.get(k) == t for k, t in tags.items())]

    def obstacles(self, ids: Sequence[str], *, sizes: Sequence[Size]) -> Mapping[str, Sequence[str]]:
        with self.cloud.lock:
            self.cloud.call("obstacles")
            assert all(size.disk > 0 for size in sizes)
            return {id: self.cloud.obstacles[id] for id in ids if id in self.cloud.obstacles}

    def subnets(self, like: str, /, *, among: Sequence[str]) -> Sequence[Subnet]:
        with self.cloud.lock:
            self.cloud.call("subnets")
            found = self.cloud.get(like)
            if found is None or not isinstance(found.view, Server):
                raise NotFound(f"there is no server {like}")
            wanted = dict.fromkeys((found.view.size.subnet, *among))
            return [self.cloud.subnets.get(id) or Subnet(id=id, zone="a", free=250) for id in wanted]

    def examine(
        self,
        ids: Sequence[str],  # noqa: ARG002
        *,
        sizes: Sequence[Size],  # noqa: ARG002
        at_once: int,  # noqa: ARG002
        among: Sequence[str] = (),  # noqa: ARG002
    ) -> Sequence[Finding]:
        return ()  # it has room for all

    def rights(self, ids: Sequence[str], *, fleet: str) -> Sequence[Rights]:  # noqa: ARG002
        return ()

    def recipe(self) -> str:
        return self.cloud.recipe

    def ensure_image(self, key: Key, *, source: str) -> Image:
        with self.cloud.lock:
            fault = self.cloud.call("ensure_image")
            if self.cloud.get(source) is None:
                raise NotFound(f"there is no server {source}")
            view = Image(id="", name=key.name, state="pending", disk=1024, tags=dict(key.tags))
            there = key.token in self.cloud._tokens
            made = self._ensure(key, view, (source,), self.cloud.image_seconds, "available", "img")
            if not there:
                now = self.cloud.clock()
                self.cloud.moments[made.id] = source, now, now + self.cloud.image_seconds / 3
            self.cloud.answer(fault, "ensure_image")
            assert isinstance(made, Image)
            return replace(made, adopted=there)

    def taken(self, image: str, /) -> bool:
        with self.cloud.lock:
            self.cloud.call("taken")
            if image not in self.cloud.things:
                raise NotFound(f"there is no image {image}")
            return self.cloud.clock() >= self.cloud.moments[image][2]

    def ensure_server(self, key: Key, *, image: str, like: str, size: Size) -> Server:
        with self.cloud.lock:
            fault = self.cloud.call("ensure_server")
            found = self.cloud.get(image)
            if found is None or not isinstance(found.view, Image):
                raise NotFound(f"there is no image {image}")
            if self.cloud.get(like) is None:
                raise NotFound(f"there is no server {like}")
            if size.disk < found.view.disk:
                raise Refused(f"the image needs {found.view.disk} bytes of disk, the size has {size.disk}")
            fresh = key.token not in self.cloud._tokens
            if fresh and self.cloud.room(size) < 1:
                raise NoCapacity(f"no {size.type or 'room'} in {size.subnet or 'its own subnet'}")
            view = Server(
                id="",
                name=key.name,
                state="pending",
                address=self.cloud._address(),
                size=size,
                tags=dict(key.tags),
                launched=self.cloud.clock(),
            )
            ready = self.cloud.spoil(like) or "running"
            made = self._ensure(key, view, (image, like, size), self.cloud.ready_seconds, ready, "srv")
            if fresh:
                self.cloud.take(size)
            self.cloud.answer(fault, "ensure_server")
            assert isinstance(made, Server)
            if made.state == "terminated":
                raise Refused(f"{made.id}, which this key made, is terminated")
            return made

    def _ensure(
        self, key: Key, view: Server | Image, made_of: tuple[object, ...], seconds: float, ready: str, kind: str
    ) -> Server | Image:
        thing = self.cloud.things.get(self.cloud._tokens.get(key.token, ""))
        if thing is not None:
            if thing.made_of != made_of:
                raise Conflict(f"{thing.view.id} was made by the same key of something else")
            return self.cloud.now(thing)
        id = self.cloud.new_id(kind)
        view = replace(view, id=id, boot=f"{id}#1") if isinstance(view, Server) else replace(view, id=id)
        self.cloud.things[view.id] = _Thing(
            view=view, ready_at=self.cloud.clock() + seconds, made_of=made_of, ready_state=ready
        )
        self.cloud._tokens[key.token] = view.id
        if isinstance(view, Server):
            self.cloud.addresses[view.address] = view.id
        self.cloud.made[key.token] = self.cloud.made.get(key.token, 0) + 1
        return self.cloud.now(self.cloud.things[view.id])

    def stop_all(self, asked: Collection[Stopping]) -> Mapping[Stopping, ProviderError | None]:
        """One call."""
        with self.cloud.lock:
            fault = self.cloud.call("stop")
            said = each(self._stop, asked)
            self.cloud.answer(fault, "stop")
            return said

    def _stop(self, asked: Stopping) -> None:
        thing = self.cloud.get(asked.id)
        if thing is None or not isinstance(thing.view, Server):
            raise NotFound(f"there is no server {asked.id}")
        if thing.view.state != "stopped":  # stopping what is stopped takes nothing away
            _end(thing, "stopped", dict(asked.given))

    def terminate(self, id: str, *, given: Given | None = None) -> None:
        with self.cloud.lock:
            thing = self.cloud.get(id)
            tags = thing.view.tags if thing is not None else {}
            if thing is not None and "1" not in (tags.get("changeover:managed"), tags.get("changeover:disposable")):
                raise GuardRefused(f"{id} carries neither changeover:managed=1 nor changeover:disposable=1")
            fault = self.cloud.call("terminate")
            if thing is not None and isinstance(thing.view, Server):
                _end(thing, "terminated", given)
                self.cloud.answer(fault, "terminate")

    def start(self, id: str, *, given: Given | None = None) -> None:
        with self.cloud.lock:
            fault = self.cloud.call("start")
            thing = self.cloud.get(id)
            if thing is None or not isinstance(thing.view, Server):
                raise NotFound(f"there is no server {id}")
            if thing.view.state != "running":
                _compare(thing.view, given)
                boots = int(thing.view.boot.partition("#")[2])
                thing.view = replace(thing.view, state="pending", boot=f"{id}#{boots + 1}")
                thing.ready_at = self.cloud.clock() + self.cloud.ready_seconds
                thing.ready_state = "running"
            self.cloud.answer(fault, "start")

    def delete_image(self, id: str) -> None:
        with self.cloud.lock:
            fault = self.cloud.call("delete_image")
            thing = self.cloud.things.get(id)
            if thing is not None and thing.view.tags.get("changeover:managed") != "1":
                raise GuardRefused(f"{id} does not carry changeover:managed=1")
            self.cloud.things.pop(id, None)
            self.cloud.answer(fault, "delete_image")

    def protect(self, id: str, on: bool, *, given: Given | None = None) -> None:
        with self.cloud.lock:
            self.cloud.call("protect")
            thing = self.cloud.get(id)
            if thing is None or not isinstance(thing.view, Server):
                raise NotFound(f"there is no server {id}")
            _compare(thing.view, given)
            thing.view = replace(thing.view, protected=on)

    def tag(self, id: str, tags: Mapping[str, str | None], *, given: Given | None = None) -> None:
        with self.cloud.lock:
            self.cloud.call("tag")
            thing = self.cloud.get(id)
            if thing is None or not isinstance(thing.view, Server):
                raise NotFound(f"there is no server {id}")
            _compare(thing.view, given)
            merged = {**thing.view.tags, **tags}
            thing.view = replace(thing.view, tags={k: v for k, v in merged.items() if v is not None})


def _end(thing: _Thing, state: Literal["stopped", "terminated"], given: Given | None) -> None:
    assert isinstance(thing.view, Server)
    _compare(thing.view, given)
    if thing.protected:
        raise GuardRefused(f"{thing.view.id} is protected")
    thing.view = replace(thing.view, state=state)


def _compare(server: Server, given: Given | None) -> None:
    """Raises `GuardRefused` unless it carries these tags."""
    wrong = [name for name, value in (given or {}).items() if server.tags.get(name) != value]
    if wrong:
        raise GuardRefused(f"{server.id}: {wrong[0]} is {server.tags.get(wrong[0])!r}: that was decided before")
