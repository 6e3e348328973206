"""The fleet file as a model: which servers, what target, which traffic switch, which checks, which rollout policy.

Unknown keys, loose types and dangerous names are refused here, once; everything behind it may trust what it gets.
Durations are written `30s`, `5m`, `24h`, `7d` and kept as seconds; sizes `256MiB`, `10GiB`, kept as bytes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from orchestrator.domain import rollout, windows
from orchestrator.domain.steps import STEPS

_DURATION = re.compile(r"(\d{1,12}(?:\.\d{1,3})?)(ms|s|m|h|d)")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES = re.compile(r"(\d{1,16})(B|KiB|MiB|GiB|TiB)")
_POWERS = {"B": 0, "KiB": 1, "MiB": 2, "GiB": 3, "TiB": 4}
_SECRET = re.compile(r"authorization|cookie|token|secret|password|api-?key", re.IGNORECASE)
_REFERENCE = re.compile(r"(env:[A-Za-z_][A-Za-z0-9_]*|file:/[^\x00-\x1f]{1,500})")
_YEAR = 366 * 86400.0
MOST_ATTEMPTS = 100  # of one step, before a person is asked or it is turned back
ROUND_LIMIT = 25.0  # seconds that one round of smoke requests may take: a worker's turn is short


def _seconds(value: object) -> object:
    if isinstance(value, str) and (match := _DURATION.fullmatch(value)):
        return float(match[1]) * _UNITS[match[2]]
    raise ValueError("write a duration with its unit, such as 30s, 5m or 24h")


def _bytes(value: object) -> object:
    if isinstance(value, str) and (match := _BYTES.fullmatch(value)):
        return int(match[1]) * 1024 ** _POWERS[match[2]]
    raise ValueError("write a size with its unit, such as 256MiB or 10GiB")


def _pattern(value: str) -> str:
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError(f"is no regular expression: {error}") from None
    return value


def _wave(value: object) -> object:
    if value == "rest" or (isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 10_000):
        return value
    if isinstance(value, str) and re.fullmatch(r"[1-9]\d?%|100%", value):
        return value
    raise ValueError("a wave is a count from 1, a share such as 25%, or rest")


def _mode(value: object) -> object:
    if isinstance(value, str) and re.fullmatch(r"[0-7]{3,4}", value):
        return value.zfill(4)
    raise ValueError('write a mode in quotes, as octal digits such as "0640"')


Name = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?$")]
Ident = Annotated[str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9_.:-]{0,126}[A-Za-z0-9])?$")]
Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
Backend = Annotated[str, Field(pattern=r"^[A-Za-z0-9_@][A-Za-z0-9_.:/-]{0,254}$")]
Line = Annotated[str, Field(min_length=1, max_length=1000, pattern=r"^[^\x00-\x1f\x7f]+$")]
_AS_DURATION = PlainSerializer(lambda seconds: f"{round(seconds * 1000)}ms", return_type=str)
_AS_BYTES = PlainSerializer(lambda size: f"{size}B", return_type=str)
Duration = Annotated[float, BeforeValidator(_seconds), Field(ge=0, le=_YEAR), _AS_DURATION]
Positive = Annotated[float, BeforeValidator(_seconds), Field(gt=0, le=_YEAR), _AS_DURATION]
Bytes = Annotated[int, BeforeValidator(_bytes), Field(gt=0, le=2**50), _AS_BYTES]
Pattern = Annotated[Line, AfterValidator(_pattern)]
Wave = Annotated[int | str, BeforeValidator(_wave)]
Mode = Annotated[str, BeforeValidator(_mode)]
InnerPath = Annotated[str, Field(pattern=r"^/?[^\x00-\x1f\x7f]{1,500}$")]
Port = Annotated[int, Field(ge=1, le=65535)]
Variable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,99}$")]


def _no_secrets(settings: Mapping[str, str | int]) -> Mapping[str, str | int]:
    for name, value in settings.items():
        if _SECRET.search(name) and not (isinstance(value, str) and _REFERENCE.fullmatch(value)):
            raise ValueError(f"{name} is a secret: write env:NAME or file:/path, not its value")
    return settings


def _references_of_secrets_alone(settings: Mapping[str, str | int]) -> Mapping[str, str | int]:
    """What is no secret is sent in the open, to whom the file says: a reference there would give away what it names."""
    for name, value in settings.items():
        refers = isinstance(value, str) and value.startswith(("env:", "file:"))
        if refers and not (_SECRET.search(name) or name.startswith("parameters.")):
            raise ValueError(f"{name} is no secret: write its value, not a reference to one")
    return settings


Settings = Annotated[
    Mapping[str, Line | int], AfterValidator(_no_secrets), AfterValidator(_references_of_secrets_alone)
]


class Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, str_max_length=4096, allow_inf_nan=False)


class Provider(Model):
    """Where the servers live, but for those that name another account or region themselves. `settings` go to the
    provider, `{account}` and `{region}` in them replaced by those meant; secrets in them are references."""

    name: Word
    account: Word = "default"
    region: Word = "default"
    guest: Word | None = None
    settings: Settings = Field(default_factory=dict)


class TargetSize(Model):
    memory: Bytes
    disk: Bytes
    type: Ident | None = None


class Target(Model):
    """What B is: the size, and other sizes to fall back to where there is no room for the first. `subnets` are those of
    the provider that B may be in where A's own has no address left; with `zones: any` also in another zone than A's."""

    size: TargetSize
    fallback: tuple[TargetSize, ...] = Field(default=(), max_length=10)
    subnets: tuple[Ident, ...] = Field(default=(), max_length=20)
    zones: Literal["same", "any"] = "same"

    @model_validator(mode="after")
    def _zones_have_subnets(self) -> Target:
        if self.zones == "any" and not self.subnets:
            raise ValueError("zones: any needs subnets to go to: write subnets: [...]")
        return self

    @property
    def sizes(self) -> tuple[TargetSize, ...]:
        """In the order in which they are tried."""
        return (self.size, *self.fallback)


class _Placed(Model):
    """What may be in another account or region than the rest of the fleet."""

    account: Word | None = None
    region: Word | None = None

    @model_serializer(mode="wrap")
    def _said(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A file that says neither is kept in the words that it has: they are part of a plan's hash."""
        told: dict[str, Any] = handler(self)
        return {key: value for key, value in told.items() if value is not None or key not in ("account", "region")}

    @property
    def place(self) -> tuple[str | None, str | None]:
        return self.account, self.region


class FleetServer(_Placed):
    """`id` is the provider's own; the name if left out. `domain` names the failure domain (rack, zone)."""

    name: Name
    id: Ident | None = None
    domain: Word | None = None
    pools: tuple[Word, ...] = Field(min_length=1, max_length=20)


class Pool(_Placed):
    """`port` is the server's own in this pool. At least `min_healthy` others stay in rotation at any moment."""

    port: Port
    min_healthy: Annotated[int, Field(ge=1, le=10_000)] = 1
    backend: Backend | None = None


class TrafficSwitch(Model):
    provider: Word
    settings: Settings = Field(default_factory=dict)
    pools: Mapping[Word, Pool] = Field(min_length=1, max_length=10_000)


class PathRule(Model):
    path: InnerPath
    mode: Mode | None = None
    owner: Word | None = None
    group: Word | None = None


class GuestChecks(Model):
    """What must hold inside B before its smoke test. `like_old`: these paths have A's kind, mode, owner and group.
    `listening`: ports at which something has to listen; with `listening_like_old` also where something on A did when
    the plan was made, but for those that are given by chance; and `clock`: how far B's clock may be from its asker's.
    These three are waited for."""

    disk_free: Bytes | None = None
    memory_free: Bytes | None = None
    permissions: tuple[PathRule, ...] = Field(default=(), max_length=100)
    like_old: tuple[InnerPath, ...] = Field(default=(), max_length=100)
    listening: tuple[Port, ...] = Field(default=(), max_length=100)
    listening_like_old: bool = False
    clock: Positive | None = None

    @model_serializer(mode="wrap")
    def _said(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """As of `_Placed`: what is not said is not part of a plan's hash."""
        told: dict[str, Any] = handler(self)
        later = ("listening", "listening_like_old", "clock")
        return {key: value for key, value in told.items() if value or key not in later}


class SmokeRequest(Model):
    """A request as a user would send it; `url` has the site's own host. Headers that are secrets are references."""

    url: Annotated[str, Field(pattern=r"^https?://[A-Za-z0-9][A-Za-z0-9.:-]*(/[^\x00-\x20\x7f]*)?$", max_length=1000)]
    method: Literal["GET", "HEAD", "POST", "PUT", "OPTIONS"] = "GET"
    headers: Mapping[Word, Line] = Field(default_factory=dict, max_length=50)
    body: str = ""
    timeout: Positive = 5.0
    ca: Line | None = None
    status: tuple[Annotated[int, Field(ge=100, le=599)], ...] = (200,)
    header_matches: Mapping[Word, Pattern] = Field(default_factory=dict, max_length=50)
    contains: tuple[Line, ...] = Field(default=(), max_length=50)
    matches: Pattern | None = None
    latency: Positive | None = None
    same_as_old: bool = False
    masks: tuple[Pattern, ...] = Field(default=(), max_length=50)
    pool: Word | None = None

    @model_validator(mode="after")
    def _secrets_are_references(self) -> SmokeRequest:
        for name, value in self.headers.items():
            if _SECRET.search(name) and not _REFERENCE.fullmatch(value):
                raise ValueError(f"header {name} carries a secret: write env:NAME or file:/path, not its value")
        if self.same_as_old and self.method not in ("GET", "HEAD"):
            raise ValueError("same_as_old asks A as well, which serves users: only GET and HEAD")
        return self


class Smoke(Model):
    """Each request must pass `passes` times in a row, within `tries` rounds, `every` apart."""

    requests: tuple[SmokeRequest, ...] = Field(min_length=1, max_length=50)
    passes: Annotated[int, Field(ge=1, le=20)] = 3
    tries: Annotated[int, Field(ge=1, le=100)] = 10
    every: Duration = 1.0
    probe: Word = "http"

    @model_validator(mode="after")
    def _reachable(self) -> Smoke:
        if self.tries < self.passes:
            raise ValueError(f"{self.passes} passes cannot happen in {self.tries} tries")
        longest = sum(request.timeout * (4 if request.same_as_old else 1) for request in self.requests)
        if longest > ROUND_LIMIT:
            raise ValueError(f"one round may take {longest:g} s by its timeouts, {ROUND_LIMIT:g} s at most: lower them")
        return self


class Checks(Model):
    guest: GuestChecks = GuestChecks()
    smoke: Smoke


class SyncHook(Model):
    """Brings what A wrote after its image over to B, before B is tested: run by a worker, without a shell, words
    `{old}` and `{new}` replaced by the addresses. It must be safe to run twice. It sees none of the worker's own
    environment but what any program needs (PATH, HOME and the like), and `env`, where secrets are references."""

    sync: tuple[Line, ...] = Field(min_length=1, max_length=50)
    timeout: Annotated[Positive, Field(le=25)] = 20.0
    env: Annotated[Mapping[Variable, Line], AfterValidator(_no_secrets)] = Field(default_factory=dict, max_length=50)


class Quiesce(Model):
    """What A runs inside itself before the moment of its image and after it, so that its disks are whole in between.
    Both without a shell. `after` must be safe to run twice, and where nothing stands still. So long after `before` has
    begun at the latest, A runs `after` by itself, whatever has become of everybody else."""

    before: tuple[Line, ...] = Field(min_length=1, max_length=50)
    after: tuple[Line, ...] = Field(min_length=1, max_length=50)
    timeout: Annotated[Positive, Field(ge=5, le=300)] = 60.0


class Acknowledged(Model):
    """Somebody took responsibility for what A writes after its image, and for a clone that acts twice."""

    acknowledged: Annotated[Line, Field(min_length=10)]


class Budget(Model):
    """How many servers may fail before their swap until the rollout pauses: a count or a share of the fleet."""

    before_swap: Annotated[int, Field(ge=0, le=10_000)] | Annotated[str, Field(pattern=r"^\d{1,2}%$")] = 0

    def allowed(self, total: int) -> int:
        if isinstance(self.before_swap, int):
            return self.before_swap
        return total * int(self.before_swap.removesuffix("%")) // 100


class Drain(Model):
    """How A leaves. At `deadline`, requests that still run are kept (a person is asked) or cut."""

    deadline: Duration = 300.0
    at_deadline: Literal["keep", "cut"] = "keep"
    quiet: Annotated[Duration, Field(le=300)] = 1.0


def _wave_number(value: object) -> object:
    if value == "every" or (isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 100):
        return value
    raise ValueError("name a wave by its number, from 1, or every")


def _zone(value: str) -> str:
    try:
        ZoneInfo(value)
    except (ValueError, OSError, ZoneInfoNotFoundError):
        raise ValueError(f"{value!r} is no time zone: name it as the IANA does, such as Europe/Berlin") from None
    return value


def _time_of_day(value: str) -> str:
    windows.minutes(value)
    return value


Person = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,127}$")]
TimeOfDay = Annotated[str, AfterValidator(_time_of_day)]


class Approval(Model):
    """`count` people have to say yes before that wave begins. `by`: whose yes counts; everybody's if it names nobody.
    `within`: how long they have, until `otherwise`; without it they are waited for."""

    before: Annotated[int | str, BeforeValidator(_wave_number)]
    count: Annotated[int, Field(ge=1, le=20)] = 1
    by: tuple[Person, ...] = Field(default=(), max_length=100)
    within: Positive | None = None
    otherwise: Literal["pause", "abort", "continue"] = "pause"

    @model_validator(mode="after")
    def _enough_people(self) -> Approval:
        if self.by and len(set(self.by)) < self.count:
            raise ValueError(f"count: {self.count} are wanted, and {len(set(self.by))} may say it")
        if self.otherwise != "pause" and self.within is None:
            raise ValueError("otherwise: say within what time")
        return self


class Open(Model):
    """One that closes at or before its opening does so on the day after. `days`: on which it opens."""

    days: tuple[windows.Weekday, ...] = Field(default=windows.WEEK, min_length=1, max_length=7)
    opens: TimeOfDay
    closes: TimeOfDay


class Windows(Model):
    """When servers may be begun; never else. What is under way when one closes finishes."""

    zone: Annotated[str, Field(max_length=100), AfterValidator(_zone)]
    open: tuple[Open, ...] = Field(min_length=1, max_length=50)

    def decided_by(self) -> windows.Windows:
        """As decisions read them."""
        each = [
            windows.Window(
                days=windows.weekdays(o.days), begins=windows.minutes(o.opens), ends=windows.minutes(o.closes)
            )
            for o in self.open
        ]
        return windows.Windows(zone=self.zone, windows=tuple(each))


class Policy(Model):
    waves: tuple[Wave, ...] = Field(default=(1, "5%", "25%", "rest"), min_length=1, max_length=100)
    bake: Duration = 300.0
    soak: Duration = 10.0
    max_in_flight: Annotated[int, Field(ge=1, le=1000)] = 10
    budget: Budget = Budget()
    attempts: Annotated[int, Field(ge=1, le=MOST_ATTEMPTS)] = 5
    back_off: Annotated[Positive, Field(le=600)] = 2.0
    deadlines: Mapping[str, Positive] = Field(default_factory=dict)
    poll: Annotated[Positive, Field(le=300)] = 5.0
    drain: Drain = Drain()
    on_abort: Literal["finish", "roll_back"] = "roll_back"
    approvals: tuple[Approval, ...] = Field(default=(), max_length=100)
    windows: Windows | None = None

    def asked_before(self, waves: int) -> tuple[rollout.Approval, ...]:
        """What is asked before each of so many waves."""
        return tuple(
            rollout.Approval(wave=wave, count=a.count, by=a.by, within=a.within, otherwise=a.otherwise)
            for a in self.approvals
            for wave in (range(waves) if isinstance(a.before, str) else (a.before - 1,))
        )

    @model_validator(mode="after")
    def _each_wave_is_asked_for_once(self) -> Policy:
        asked = [each.before for each in self.approvals]
        if len(set(asked)) < len(asked) or ("every" in asked and len(asked) > 1):
            raise ValueError("approvals: a wave is asked about twice")
        for before in asked:
            if isinstance(before, int) and before > len(self.waves):
                raise ValueError(f"approvals: before wave {before}, and there are {len(self.waves)}")
        return self

    @model_validator(mode="after")
    def _steps_are_known(self) -> Policy:
        for step in self.deadlines:
            if step not in STEPS:
                raise ValueError(f"deadlines: {step!r} is no step; the steps are {', '.join(STEPS)}")
        return self


class Retain(Model):
    """How long A is kept, stopped and restorable. Images go with A, or are kept."""

    old_servers: Duration = 86400.0
    images: Literal["delete", "keep"] = "delete"


class Fleet(Model):
    """The whole file."""

    version: Literal[1]
    fleet: Name
    provider: Provider
    target: Target
    servers: tuple[FleetServer, ...] = Field(min_length=1, max_length=10_000)
    traffic: TrafficSwitch
    checks: Checks
    state: Literal["stateless"] | SyncHook | Acknowledged
    quiesce: Quiesce | None = None
    rollout: Policy = Policy()
    retain: Retain = Retain()

    @model_serializer(mode="wrap")
    def _said(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """As of `_Placed`: what is not said is not part of a plan's hash."""
        told: dict[str, Any] = handler(self)
        return {key: value for key, value in told.items() if value is not None or key != "quiesce"}

    @model_validator(mode="after")
    def _coherent(self) -> Fleet:
        names: set[str] = set()
        ids: set[str] = set()
        for index, server in enumerate(self.servers):
            if server.name in names:
                raise ValueError(f"servers[{index}]: {server.name} is there twice")
            if self.id_of(server) in ids:
                raise ValueError(f"servers[{index}]: id {self.id_of(server)} is there twice")
            names.add(server.name)
            ids.add(self.id_of(server))
            for pool in server.pools:
                if pool not in self.traffic.pools:
                    raise ValueError(f"servers[{index}]: pool {pool!r} is not under traffic.pools")
            if len(set(server.pools)) != len(server.pools):
                raise ValueError(f"servers[{index}]: a pool is there twice")
        if any(server.domain for server in self.servers) and not all(server.domain for server in self.servers):
            bare = next(server.name for server in self.servers if not server.domain)
            raise ValueError(f"some servers have a domain and {bare} has none: give it to all or to none")
        for request in self.checks.smoke.requests:
            if request.pool is not None and request.pool not in self.traffic.pools:
                raise ValueError(f"checks.smoke: pool {request.pool!r} is not under traffic.pools")
        rollout.wave_sizes(self.rollout.waves, len(self.servers))
        return self

    @staticmethod
    def id_of(server: FleetServer) -> str:
        return server.id or server.name

    @property
    def lane(self) -> str:
        """(provider, account, region): the unit of rate limits and of batched looks at servers and images. Of a fleet
        that is in several places each of `places` has its own."""
        return f"{self.provider.name}/{self.provider.account}/{self.provider.region}"

    @property
    def places(self) -> tuple[Fleet, ...]:
        """This fleet, account by account and region by region: each with the servers that are there and the pools that
        these are in. Only itself, if all are where its provider is."""
        named = dict.fromkeys(self._where(server) for server in self.servers)
        if list(named) == [(self.provider.account, self.provider.region)]:
            return (self,)
        return tuple(self._at(account, region) for account, region in named)

    def _where(self, server: FleetServer) -> tuple[str, str]:
        account, region = server.place
        return account or self.provider.account, region or self.provider.region

    def _at(self, account: str, region: str) -> Fleet:
        there = tuple(server for server in self.servers if self._where(server) == (account, region))
        used = {pool for server in there for pool in server.pools}
        provider = self.provider.model_copy(update={"account": account, "region": region})
        pools = {name: pool for name, pool in self.traffic.pools.items() if name in used}
        traffic = self.traffic.model_copy(update={"pools": pools})
        return self.model_copy(update={"provider": provider, "traffic": traffic, "servers": there})

    @property
    def locks(self) -> Mapping[str, str]:
        """What is held of each server, so that nobody else replaces it, and the server's name."""
        return {f"{at.lane}/{at.id_of(server)}": server.name for at in self.places for server in at.servers}

    def canonical(self) -> Any:
        """As plain JSON data, to be hashed and stored; it reads back as the same fleet."""
        return self.model_dump(mode="json")
