"""What a step may touch: the store, the clock and the providers, and nothing else."""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast

from orchestrator import secrets
from orchestrator.dispatch import Sender
from orchestrator.domain.budget import Limit
from orchestrator.domain.fleet import Fleet
from orchestrator.domain.orphans import Patience
from orchestrator.domain.plan import FoundServer, Plan, plan_from
from orchestrator.domain.upgrade import Upgrade
from orchestrator.errors import NotFound, Unreachable, UnsafeStore
from orchestrator.hook_file import KnownReceiver, fresh_receivers
from orchestrator.lanes import Reach, lanes
from orchestrator.settings import Settings
from orchestrator.store import Claim, Store
from orchestrator.store.redis import RedisStore
from providers import Role, budget, find
from providers.clients import rounds
from providers.compute import Compute, Image, Server, Size
from providers.errors import Busy, Refused
from providers.guest import Guest
from providers.probe import Probe
from providers.traffic import Traffic
from tasks.gathering import Crowd, Gathering, Looks, SharedTurn
from tasks.owed import Owed
from tasks.switches import Switches

BODY_LIMIT = 30.0  # seconds after which a task makes no new call, so that a warm shutdown stays short

TRUSTED = 5.0  # seconds for which what a rollout is about need not be asked again: only a rebuild changes it
CONFIRMED = 0.2  # seconds for which the store's word that an upgrade is ours counts for the next call too
QUEUE = 2.0  # seconds that a thread waits for its turn at a balancer: a call there takes some tens of milliseconds
GATHER = 0.1  # seconds: next to nothing beside a step, and enough for all that were woken by one look
COMING = 3.0  # seconds for which a question waits for others of its kind, at most
JOINING = 0.5  # seconds for which others join a turn at a balancer that answers at once; elsewhere as long as `COMING`
TOGETHER = 8.0  # as `QUEUE`, where a turn is for all who come within a moment, and takes longer
MANY = 200  # fleets and roles whose providers are found at once
AGAIN = 0.01  # seconds between two tries for a balancer that another worker has


def boottime() -> float:
    """Seconds since this machine booted, those included in which this process or the machine stood still."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class OutOfTime(Exception):
    """The body has used up its time: the rest is for the next message."""


def _no_crash(_point: str) -> None: ...


@dataclass(kw_only=True)
class World:
    """One a process. `crash` is called around every provider call; tests let it fail there. `late`: seconds after which
    a call that was begun has taken effect or never will (connect 3 s, read 10 s, and a moment at the provider).
    `handover`: seconds for which it waits for a balancer that another worker has, rather than come again with another
    message; `gather`: seconds in which looks of its threads become one call; none of either where time is not real."""

    store: Store
    publish: Sender
    worker: str
    lease: float = 60.0
    grace: float = 5.0
    late: float = 15.0
    handover: float = 0.0
    gather: float = 0.0
    patience: Patience = field(default_factory=Patience)
    crowd: Crowd = field(default_factory=Crowd)
    monotonic: Callable[[], float] = boottime
    spread: Callable[[], float] = random.random
    crash: Callable[[str], None] = _no_crash
    ending: Callable[[], bool] = lambda: False
    find: Callable[[Any, str, Mapping[str, Any]], Any] = find
    receivers: Callable[[], Mapping[str, KnownReceiver]] = dict
    owed: Owed = field(init=False)
    _specs: dict[str, tuple[Spec, float]] = field(default_factory=dict)
    _reaches: dict[str, Reach] = field(default_factory=dict)
    _providers: dict[tuple[str, str, str], Any] = field(default_factory=dict)
    _together: dict[int, Gathering] = field(default_factory=dict)
    _found: dict[tuple[Role, int], tuple[Fleet, Any]] = field(default_factory=dict)
    _writers: dict[str, threading.Lock] = field(default_factory=dict)
    _turns: dict[str, SharedTurn] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.owed = Owed(monotonic=self.monotonic, lasts=self.lease)

    @classmethod
    def open(cls, settings: Settings, *, worker: str, publish: Sender) -> World:
        """The world of a real worker."""
        store = RedisStore(settings.store_url(), namespace=settings.namespace, connections=settings.concurrency + 4)
        budget.use(SharedBudget(store))
        crowd = Crowd(patience=min(COMING, settings.lease / 20), threads=settings.concurrency)
        rounds.gather(crowd)
        return cls(
            store=store,
            publish=publish,
            worker=worker,
            lease=settings.lease,
            grace=settings.grace,
            late=settings.late,
            handover=min(QUEUE, settings.lease / 10),
            gather=GATHER,
            patience=Patience(seen=settings.orphan_seen, kept=settings.orphan_kept),
            crowd=crowd,
            receivers=fresh_receivers(settings.notify) if settings.notify else dict,
        )

    @property
    def settled_after(self) -> float:
        """Seconds after which a call of somebody who has lost this upgrade has taken effect or never will: such a call
        is begun within a lease, since each worker looks at the clock before it."""
        return self.lease + self.late

    def writers(self, resource: str) -> threading.Lock:
        """What this process' threads queue at before one of them takes the lease on the resource."""
        with self._lock:
            return self._writers.setdefault(resource, threading.Lock())

    def turn_at(self, resource: str, *, quick: bool) -> SharedTurn:
        """What this process' threads change that resource in, together. `quick`: a call there takes next to no time."""
        open = min(JOINING, self.crowd.patience) if quick else self.crowd.patience
        with self._lock:
            return self._turns.setdefault(resource, SharedTurn(open=open))

    def spec(self, rollout: str) -> Spec:
        """What this rollout is about. It never changes, unless Redis has lost everything and a person has rebuilt the
        rollout: then what this process remembers has another plan."""
        found, at = self._specs.get(rollout, (None, 0.0))
        now = self.monotonic()
        if found is not None and now - at < TRUSTED:
            return found
        if found is None or not self._still(rollout, found.plan.id):
            document = self.store.document("spec", rollout)
            if document is None:
                raise NotFound(f"rollout {rollout} has no spec", next="changeover rollouts")
            try:
                plan = plan_from(document["plan"])
                found = Spec(plan=plan, fleet=read_fleet(plan.fleet))
            except (AttributeError, LookupError, TypeError, ValueError) as error:  # somebody has edited it
                raise UnsafeStore(
                    f"what rollout {rollout} is about cannot be read ({type(error).__name__})",
                    next=f"changeover show {rollout}",
                ) from error
        self._specs[rollout] = (found, now)
        return found

    def _still(self, rollout: str, plan: str) -> bool:
        try:
            now = self.store.rollout(rollout)
        except UnsafeStore:  # whose other servers go on with what they have begun
            return True
        return now is None or now.plan == plan

    def lanes(self) -> Mapping[str, tuple[Fleet, ...]]:
        """Where the rollouts of this installation live: see `orchestrator.lanes`."""
        return lanes(self.store, self._reaches)

    def compute(self, fleet: Fleet) -> Compute:
        return cast(Compute, self._provider("compute", fleet))

    def looks(self, fleet: Fleet) -> Looks:
        """The same, for looks that this process' threads make together: see `tasks.gathering`."""
        compute = self.compute(fleet)
        if self.gather <= 0:
            return compute
        with self._lock:
            return self._together.setdefault(id(compute), Gathering(compute, window=self.gather))

    def guest(self, fleet: Fleet) -> Guest:
        return cast(Guest, self._provider("guest", fleet))

    def traffic(self, fleet: Fleet) -> Traffic:
        return cast(Traffic, self._provider("traffic", fleet))

    def probe(self, fleet: Fleet) -> Probe:
        return cast(Probe, self._provider("probe", fleet))

    def _provider(self, role: Role, fleet: Fleet) -> Any:
        """Found by the fleet itself where it was asked for before: to put all settings into a key takes a while."""
        known = self._found.get((role, id(fleet)))
        if known is None or known[0] is not fleet:
            if len(self._found) >= MANY:
                self._found.clear()
            asked = ASKED[role](fleet)
            made = [self._shared(role, name, settings) for name, settings in asked]
            known = self._found[role, id(fleet)] = (fleet, made[0] if len(made) == 1 else self._switches(made, asked))
        return known[1]

    @staticmethod
    def _switches(made: Sequence[Traffic], asked: Sequence[tuple[str, Mapping[str, Any]]]) -> Switches:
        return Switches(
            {pool: each for each, (_, settings) in zip(made, asked, strict=True) for pool in settings["pools"]}
        )

    def _shared(self, role: Role, name: str, settings: Mapping[str, Any]) -> Any:
        """One of a kind, account and process: clients keep their connections, and threads share them."""
        key = (role, name, repr(sorted(settings.items(), key=lambda item: item[0])))
        with self._lock:
            if key not in self._providers:
                self._providers[key] = self.find(role, name, {what: _meant(value) for what, value in settings.items()})
            return self._providers[key]


@dataclass(frozen=True, kw_only=True)
class Spec:
    """`fleet` is the whole file; a single server is asked after in its own place of it (`at`)."""

    plan: Plan
    fleet: Fleet

    def at(self, server: str) -> Fleet:
        """The fleet where that server is. One that is in no place (somebody has edited the record) is asked for where
        the provider of the file is."""
        return self._places.get(server, self.fleet)

    @cached_property
    def _places(self) -> Mapping[str, Fleet]:
        return {server.name: place for place in self.fleet.places for server in place.servers}


def _lane_settings(fleet: Fleet) -> Mapping[str, Any]:
    """The provider's settings, with account and region where the file names them."""
    where = {"account": fleet.provider.account, "region": fleet.provider.region}
    said = {name: value for name, value in where.items() if value != "default"}
    return {**said, **_filled(fleet.provider.settings, where)}


def _filled(settings: Mapping[str, str | int], where: Mapping[str, str]) -> Mapping[str, str | int]:
    """The same role has another name in each account: `{account}` and `{region}` stand for where it is."""
    filled = dict(settings)
    for name, value in settings.items():
        if isinstance(value, str):
            filled[name] = value.replace("{account}", where["account"]).replace("{region}", where["region"])
    return filled


def _switches(fleet: Fleet) -> list[tuple[str, Mapping[str, Any]]]:
    """The traffic switch of the file, with its pools; one for each account and region that pools name."""
    asked: list[tuple[str, Mapping[str, Any]]] = []
    for place in dict.fromkeys(pool.place for pool in fleet.traffic.pools.values()):
        pools = {
            name: {"backend": pool.backend or name, "port": pool.port}
            for name, pool in fleet.traffic.pools.items()
            if pool.place == place
        }
        said = {what: value for what, value in zip(("account", "region"), place, strict=True) if value is not None}
        where = {"account": fleet.provider.account, "region": fleet.provider.region, **said}
        asked.append((fleet.traffic.provider, {**_filled(fleet.traffic.settings, where), **said, "pools": pools}))
    return asked


def _probe_settings(fleet: Fleet) -> Mapping[str, Any]:
    return {**fleet.provider.settings, "ports": sorted({pool.port for pool in fleet.traffic.pools.values()})}


# The name of the provider that a fleet asks for in each role, and its settings. Of traffic there may be several.
ASKED: Mapping[Role, Callable[[Fleet], Sequence[tuple[str, Mapping[str, Any]]]]] = {
    "compute": lambda fleet: [(fleet.provider.name, _lane_settings(fleet))],
    "guest": lambda fleet: [(fleet.provider.guest or fleet.provider.name, _lane_settings(fleet))],
    "traffic": _switches,
    "probe": lambda fleet: [(fleet.checks.smoke.probe, _probe_settings(fleet))],
}


def read_fleet(canonical: Mapping[str, Any]) -> Fleet:
    """The fleet that was stored as `fleet.canonical()`."""
    return Fleet.model_validate_json(json.dumps(canonical))


class SharedBudget:
    """What all workers may ask of a provider's API together, kept in the store (`providers.budget.Budget`)."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def spend(self, bucket: str, *, rate: float, burst: float, patience: float) -> float:
        return self._store.spend(bucket, Limit(rate=rate, burst=burst), patience=patience)

    def refused(self, bucket: str, *, rate: float, burst: float) -> None:
        self._store.refused(bucket, Limit(rate=rate, burst=burst))


class Turn:
    """One worker's turn at one upgrade: the claim, and the providers behind a renewal of the lease before each call."""

    def __init__(self, world: World, claim: Claim, *, name: str = "", asked: float = -math.inf) -> None:
        """`asked`: when the claim was asked for, by the world's monotonic clock."""
        self._world = world
        self._confirmed = self._leased = asked
        self._name = name
        self._began = world.monotonic()
        self._base = claim.lease_until - world.lease
        self.claim = claim
        self.upgrade: Upgrade = claim.row.upgrade

    # Made at first use, inside the journal: a provider that cannot be made is trouble of this upgrade like any other,
    # and where Redis does not answer for what it is about the lease is given back.

    @cached_property
    def spec(self) -> Spec:
        """Raises `NotFound` and `UnsafeStore`."""
        return self._world.spec(self.claim.rollout)

    @property
    def fleet(self) -> Fleet:
        """As far as it is where this server is."""
        return self.spec.at(self.claim.server)

    @cached_property
    def server(self) -> FoundServer:
        """A, as the plan saw it. Raises `NotFound`, if somebody has edited the plan."""
        return self.spec.plan.server(self.claim.server)

    @cached_property
    def compute(self) -> Compute:
        return cast(Compute, _Renewing(self._world.compute(self.fleet), self, "compute"))

    @cached_property
    def looks(self) -> Looks:
        return cast(Looks, _Renewing(self._world.looks(self.fleet), self, "compute"))

    @cached_property
    def guest(self) -> Guest:
        return cast(Guest, _Renewing(self._world.guest(self.fleet), self, "guest"))

    @cached_property
    def traffic(self) -> Traffic:
        return cast(Traffic, _Renewing(self._world.traffic(self.fleet), self, "traffic"))

    @cached_property
    def probe(self) -> Probe:
        return cast(Probe, _Renewing(self._world.probe(self.fleet), self, "probe"))

    @property
    def now(self) -> float:
        """The store's clock, epoch seconds."""
        return self._base + (self._world.monotonic() - self._began)

    @property
    def settled_after(self) -> float:
        return self._world.settled_after

    def before_call(self, what: str) -> None:
        """Raises `Fenced` if the upgrade is no longer ours, `OutOfTime` if this message had its time.

        The lease is renewed, unless the store has said a moment ago that it is ours and more than half of it is left. A
        worker may stand still between the store's answer and the call, and wake up when its lease is long another's: if
        more than half of it passed meanwhile, it asks again. What is left is the moment between a look at the clock and
        the call itself."""
        half = self._world.lease / 2
        fresh = min(CONFIRMED, self._world.lease / 20)
        while True:
            now = self._world.monotonic()
            if self._world.ending():
                raise OutOfTime(f"its worker was told to end before {what}")
            if now - self._began > BODY_LIMIT:
                raise OutOfTime(f"{BODY_LIMIT:g} s of work are up before {what}")
            if now - self._confirmed <= fresh and now - self._leased <= half:
                break
            self.confirm(self._world.store.renew(self.claim, lease=self._world.lease), asked=now)
            self._leased, fresh = now, half
        self._world.crash(f"{self.point}.before {what}")

    def confirm(self, claim: Claim, *, asked: float) -> None:
        """The store has said that the upgrade is ours, asked at that time of the monotonic clock. Of the lease's end it
        has said nothing."""
        self.claim, self._confirmed = claim, asked

    def after_call(self, what: str) -> None:
        self._world.crash(f"{self.point}.after {what}")

    @property
    def crowd(self) -> Crowd:
        return self._world.crowd

    @property
    def point(self) -> str:
        """What crash points begin with."""
        return self._name or ("undo_" if self.upgrade.direction == "undo" else "") + self.upgrade.step

    def writer_of(self, pool: str) -> AbstractContextManager[None]:
        """The turn of whoever changes what is in that pool, where changes there are made in turns."""
        caps, lane = self.traffic.caps, self.traffic.lane(pool)
        if not caps.takes_turns:
            return nullcontext()
        if caps.decides_together and self._world.gather > 0:
            return self.one_of_the_writers(lane)
        return self.only_writer(lane)

    @contextmanager
    def only_writer(self, resource: str) -> Iterator[None]:
        """Nobody else changes that balancer or zone meanwhile. Threads of this worker queue for their turn, a moment
        long, and the first of them for that of other workers; raises `Busy` if that passes."""
        among_us = self._world.writers(resource)
        with self.crowd.asking():
            mine = among_us.acquire(timeout=QUEUE)
        if not mine:
            raise Busy(f"many of this worker are changing {resource}")
        try:
            self._take_turn(resource, patience=self._world.handover)
            try:
                yield
            finally:
                self._give_turn(resource, self.claim.owner)
        finally:
            among_us.release()

    def _take_turn(self, resource: str, *, patience: float) -> None:
        """Raises `Busy` if another worker has it for longer than that, in seconds."""
        store, owner = self._world.store, self.claim.owner
        end = self._world.monotonic() + patience
        try:
            while store.lease(f"lb:{resource}", owner=owner, seconds=self._world.lease) is None:
                if self._world.monotonic() >= end:
                    raise Busy(f"another worker is changing {resource}")
                time.sleep(AGAIN * (1 + self._world.spread()))
        except Unreachable:  # it may be ours all the same
            self._world.owed.later(partial(store.unlease, f"lb:{resource}", owner=owner))
            raise

    def _give_turn(self, resource: str, owner: str) -> None:
        self._world.owed.give_back(partial(self._world.store.unlease, f"lb:{resource}", owner=owner))

    @contextmanager
    def one_of_the_writers(self, resource: str) -> Iterator[None]:
        """The same, for a provider that decides for all threads of a process together: those who come to one balancer
        within a moment have the turn there together. Raises `Busy` as well."""
        turn, owner = self._world.turn_at(resource, quick=self.traffic.caps.poll == 0), self.claim.owner
        among = id(self._world.traffic(self.fleet))  # who decides for them
        with self.crowd.asking():
            joined = turn.join(
                among, lambda: self._take_turn(resource, patience=TOGETHER), owner=owner, patience=TOGETHER
            )
        if not joined:
            raise Busy(f"many of this worker are changing {resource}")
        try:
            yield
        finally:
            turn.leave(partial(self._give_turn, resource))

    # -- looks: what the last observation said, or else a call -------------------------------------------------------

    def look_at_server(self, id: str) -> Server | None:
        answer = self._seen("server", id)
        if answer is not None:
            return server_from(answer)
        return self.looks.servers([id]).get(id)

    def look_at_image(self, id: str) -> Image | None:
        answer = self._seen("image", id)
        if answer is not None:
            return Image(**answer)
        return self.compute.images([id]).get(id)

    def _seen(self, kind: str, id: str) -> Mapping[str, Any] | None:
        seen = self.upgrade.seen
        if seen is None or seen.kind != kind:
            return None
        return seen.answers.get(id)


class _Renewing:
    """A provider with a renewal of the lease before each of its calls, so that no step can forget it."""

    def __init__(self, provider: Any, turn: Turn, role: str) -> None:
        self._provider = provider
        self._turn = turn
        self._role = role

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._provider, name)
        if not callable(found) or name == "lane":
            return found

        def call(*args: Any, **kwargs: Any) -> Any:
            what = f"{self._role}.{name}"
            self._turn.before_call(what)
            with self._turn.crowd.asking():
                answer = found(*args, **kwargs)
            self._turn.after_call(what)
            return answer

        return call


def server_from(answer: Mapping[str, Any]) -> Server:
    """The server that was kept on a record as its fields."""
    return Server(**{**answer, "size": Size(**answer["size"])})


def resolve(value: str) -> str:
    """A reference to a secret becomes its value, at the moment of use; anything else stays as it is. Raises `Refused`,
    also for what lets this worker itself in somewhere: whoever may write a fleet file does not get that."""
    kind, _, where = value.partition(":")
    if (kind == "env" and _lets_us_in(where)) or (kind == "file" and _lets_us_in_from(where)):
        raise Refused(f"{value} is this worker's own, and given to nobody")
    if kind == "env" and where:
        if where not in os.environ:
            raise Refused(f"the secret env:{where} is not set in this worker's environment")
        return _known(os.environ[where])
    if kind == "file" and where.startswith("/"):
        try:
            return _known(Path(where).read_text().strip())
        except OSError as error:
            raise Refused(f"the secret file:{where} cannot be read by this worker: {error.strerror}") from None
        except ValueError:  # whose own words would hold the file's bytes
            raise Refused(f"the secret file:{where} is not UTF-8 text") from None
    return value


def _lets_us_in(variable: str) -> bool:
    return variable in Settings.variables() or variable.startswith("AWS_")


def _lets_us_in_from(path: str) -> bool:
    """Files that hold such a variable's value, and the kernel's, which show every variable."""
    asked = Path(path).resolve()
    ours = {Path(os.environ[f]).resolve() for f in Settings.variables() if f.endswith("_FILE") and os.environ.get(f)}
    return asked in ours or asked.is_relative_to("/proc") or asked.is_relative_to("/sys")


def _meant(value: Any) -> Any:
    """A setting as its provider needs it."""
    return resolve(value) if isinstance(value, str) else value


def _known(secret: str) -> str:
    secrets.remember(secret)
    return secret


# A worker's environment holds the keys of a cloud and the address of Redis: no business of a program of the fleet file.
HOOK_ENVIRONMENT = ("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH")


def run_hook(argv: Sequence[str], *, timeout: float, env: Mapping[str, str] | None = None) -> str:
    """Runs a hook of the fleet file without a shell; what is wrong with it, in one line, or nothing. Of this worker's
    environment it sees what any program needs, and `env`, whose references are resolved now."""
    whole = {name: os.environ[name] for name in HOOK_ENVIRONMENT if name in os.environ}
    whole |= {name: resolve(value) for name, value in (env or {}).items()}
    try:
        done = subprocess.run(  # noqa: S603 - a fixed argv of the fleet file, no shell
            argv, capture_output=True, timeout=timeout, check=False, text=True, errors="replace", env=whole
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{argv[0]}: {error}"
    if done.returncode:
        tail = (done.stderr or done.stdout).strip().splitlines()[-1:]
        # Before it is cut: half a secret would not be known for one.
        return f"{argv[0]} ended with {done.returncode}: {secrets.redact(' '.join(tail))[:200]}"
    return ""
