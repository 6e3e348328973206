"""What can be asked under /v1. Each route checks who asks, reads what was given, asks `orchestrator.operations`, and
answers with the document that the command line prints."""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import urlencode
from zlib import crc32

import anyio
from fastapi import APIRouter, Depends, Header, Path, Query
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from orchestrator import documents, fleet_file, operations, schema, words
from orchestrator.api import bodies
from orchestrator.api.callers import (
    Admin,
    Caller,
    Pace,
    Planner,
    Reader,
    Runner,
    caller,
    refuse_fleet,
    refuse_part,
    refuse_scope,
)
from orchestrator.api.live import Door, Live
from orchestrator.api.once import once
from orchestrator.api.problems import MEDIA, Problem
from orchestrator.api.stream import Stream
from orchestrator.domain.fleet import Fleet
from orchestrator.domain.plan import Plan
from orchestrator.domain.rollout import Rollout, RolloutState
from orchestrator.domain.upgrade import State, Upgrade
from orchestrator.errors import ChangeoverError, Conflict, NotFound, Unreachable, UnsafeStore
from orchestrator.hooks import Carrier
from orchestrator.ids import new_id
from orchestrator.metrics import CONTENT_TYPE, Metrics
from orchestrator.operations import Answer, Asker, Waiter
from orchestrator.reading import readable
from orchestrator.store import Entry, Store
from orchestrator.verbs import VERBS, Said, Verb

PAGE = 100
MOST = 1000  # of a page
SLOW = 16  # requests at once that wait for a worker
STREAMS = 500
OF_ONE = 4  # of the `SLOW` requests may be of one token
STREAMS_OF_ONE = 50
REFUSALS = 1 / 60  # a second that the audit log of a rollout is told, of each token
STREAM = "text/event-stream"
REPLAYED = "Idempotency-Replayed"  # whether it had been done before under this key
_CHUNK = 250
T = TypeVar("T")


@dataclass(kw_only=True)
class Api:
    """What the routes work with, in one process. `dev` as in `Settings`. Without a `carrier` there is no webhook.
    `unsigned`: bodies of webhooks in memory of which nobody knows yet who signed them."""

    store: Store
    ask: Asker
    pace: Pace
    dev: bool = False
    waiter: Waiter = field(default_factory=Waiter)
    carrier: Carrier | None = None
    unsigned: int = 0
    streams: Counter[str] = field(default_factory=Counter)  # open now, by the token
    waiting: Counter[str] = field(default_factory=Counter)  # requests for `slow`, by the token
    refusals: Pace = field(default_factory=lambda: Pace(rate=REFUSALS))

    def __post_init__(self) -> None:
        self.live = Live(self.store)
        self.metrics = Metrics(self.store)
        self.slow = anyio.CapacityLimiter(SLOW)


async def api_of(request: Request) -> Api:  # what FastAPI is given as a plain function it calls in a thread
    found: Api = request.app.state.api
    return found


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    answer = {MEDIA: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {status: {"description": "Problem details", "content": answer} for status in statuses}


LOOKING = documented(400, 401, 403, 404, 422, 429, 503)
TELLING = LOOKING | documented(408, 409, 412, 413, 415)
MAKING = documented(400, 401, 403, 404, 408, 409, 413, 415, 422, 429, 502, 503, 504)


def _taking(model: type[bodies.Body], *, required: bool = False, yaml: bool = False) -> dict[str, Any]:
    content: dict[str, Any] = {bodies.JSON: {"schema": model.model_json_schema()}}
    if yaml:
        content[bodies.YAML] = {"schema": {"type": "string", "description": "A fleet file."}}
    return {"requestBody": {"required": required, "content": content}}


The = Annotated[Api, Depends(api_of)]
RolloutId = Annotated[str, Path(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
ServerName = Annotated[str, Path(pattern=r"^[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?$")]
Limit = Annotated[int, Query(ge=1, le=MOST, description="Of one page.")]
Cursor = Annotated[str | None, Query(max_length=300, description="From the Link of the page before.")]
Key = Annotated[str | None, Header(alias="Idempotency-Key", description="The same key and body: done once.")]
Dry = Annotated[bool, Query(description="Say what would be, refuse what would be refused, change nothing.")]
_TAG = r'(W/)?"[0-9]{1,19}-[^",]*"'
IfMatch = Annotated[
    str | None,
    Header(
        alias="If-Match",
        pattern=rf"^(\*|{_TAG}(\s*,\s*{_TAG})*)$",
        description="Only if the rollout is as it was seen.",
    ),
]
IfNone = Annotated[str | None, Header(alias="If-None-Match", description="304 where nothing has changed.")]
EventId = r"^\d{1,15}(-\d{1,19})?$"
routes = APIRouter(prefix="/v1")


def answer(
    what: str, body: Mapping[str, Any], *, status: int = 200, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    return JSONResponse({"schema": f"changeover/v1/{what}", **body}, status_code=status, headers=headers)


async def slowly(api: Api, who: Caller, work: Callable[[], T]) -> T:
    """Beside the threads of all other requests, since it waits for a worker. Raises `Problem` if this token has as many
    already as one may have: others are to find room."""
    if api.waiting[who.token.id] >= OF_ONE:
        raise Problem("too-many-requests", f"{OF_ONE} requests of this token wait for a worker already")
    with _counted(api.waiting, who):
        return await anyio.to_thread.run_sync(work, limiter=api.slow)


@contextmanager
def _counted(counts: Counter[str], who: Caller) -> Iterator[None]:
    counts[who.token.id] += 1
    try:
        yield
    finally:
        counts[who.token.id] -= 1
        if not counts[who.token.id]:
            del counts[who.token.id]


def refuse_streams(api: Api, who: Caller, *, full: bool) -> None:
    """Raises `Problem` if there is no room for another. `full`: for no more of this rollout."""
    if api.streams[who.token.id] >= STREAMS_OF_ONE:
        raise Problem("too-many-requests", f"{STREAMS_OF_ONE} streams of events of this token are open here already")
    if full or api.streams.total() >= STREAMS:
        raise Problem("too-many-requests", f"{api.streams.total()} streams of events are open here already")


# -- plans and rollouts, made ------------------------------------------------------------------------------------------


def _fleet_of(request: Request, raw: bytes) -> Fleet:
    if _is_yaml(request):
        return bodies.fleet_of(fleet_file.text_from(raw, name="fleet file"))
    return bodies.fleet_of(bodies.parsed(raw, bodies.FleetFile).fleet_file)


@routes.post(
    "/plans",
    status_code=201,
    responses={201: {"model": documents.Plan}, **MAKING},
    openapi_extra=_taking(bodies.FleetFile, required=True, yaml=True),
)
async def make_plan(request: Request, api: The, who: Planner, key: Key = None) -> Response:
    """Says what a rollout of this fleet file would do. Changes nothing; the plan is kept for 30 days."""
    raw = await bodies.raw_of(request)
    fleet = _fleet_of(request, raw)
    refuse_fleet(who, fleet.fleet)

    def act(_id: str) -> str:
        return operations.plan(api.store, api.ask, fleet, api.waiter).id

    def work() -> tuple[Plan, bool]:
        id, again = once(api.store, who, key, b"plan\n" + raw, "", act)
        return operations.saved_plan(api.store, id), again

    made, again = await slowly(api, who, work)
    return answer("plan", schema.plan(made), status=201, headers={REPLAYED: str(again).lower()})


@routes.post(
    "/rollouts",
    status_code=202,
    responses={
        200: {"model": documents.Plan, "description": "dry_run: the plan that would have been carried out."},
        202: {"model": documents.Applied},
        **MAKING,
    },
    openapi_extra=_taking(bodies.Start, required=True, yaml=True),
)
async def start(request: Request, api: The, who: Runner, key: Key = None, dry_run: Dry = False) -> Response:
    """Starts a rollout, of a plan that was made before or of a fleet file. The world is read again, and a plan that it
    has moved away from is refused."""
    raw = await bodies.raw_of(request)
    agreed: Plan | None = None
    asked = None if _is_yaml(request) else bodies.parsed(raw, bodies.Start)
    if asked is not None and asked.plan is not None:
        agreed = await anyio.to_thread.run_sync(_plan_for, api, who, asked.plan)
        fleet = Fleet.model_validate_json(json.dumps(agreed.fleet))
    elif asked is not None and asked.fleet_file is not None:
        fleet = bodies.fleet_of(asked.fleet_file)
    else:
        fleet = _fleet_of(request, raw)
    refuse_fleet(who, fleet.fleet)
    if dry_run:
        return answer("plan", schema.plan(await slowly(api, who, partial(_would, api, fleet, agreed))))

    def act(id: str) -> str:
        how: dict[str, Any] = {"agreed": agreed, "actor": who.actor, "id": id, "waiter": api.waiter}
        return operations.apply(api.store, api.ask, fleet, **how).id

    def work() -> tuple[Rollout, bool, bool | None]:
        new = new_id("r", api.store.now())
        id, again = once(api.store, who, key, b"rollout\n" + raw, new, act)
        return operations.find(api.store, id), again, operations.confirmed(api.store)

    made, again, confirmed = await slowly(api, who, work)
    body = {"rollout": schema.rollout(made), "confirmed": confirmed, "next": f"changeover watch {made.id}"}
    headers = {"Location": f"/v1/rollouts/{made.id}", REPLAYED: str(again).lower()}
    return answer("applied", body, status=202, headers=headers)


def _is_yaml(request: Request) -> bool:
    return bodies.kind_of(request, bodies.JSON, bodies.YAML) == bodies.YAML


def _plan_for(api: Api, who: Caller, id: str) -> Plan:
    found = operations.saved_plan(api.store, id)
    if not who.token.sees(found.fleet["fleet"]):
        raise NotFound(f"there is no plan {id}", next="changeover plan FILE")
    return found


def _would(api: Api, fleet: Fleet, agreed: Plan | None) -> Plan:
    fresh = operations.plan(api.store, api.ask, fleet, api.waiter)
    if agreed is not None and agreed.hash != fresh.hash:
        raise operations.moved(agreed, fresh)
    operations.refuse_blockers(fresh)
    return fresh


# -- to look at --------------------------------------------------------------------------------------------------------


def visible(api: Api, who: Caller, id: str) -> Rollout:
    """A rollout of another's fleet is told from none by nothing."""
    found = operations.find(api.store, id)
    if not who.token.sees(found.fleet):
        raise NotFound(
            f"there is no rollout {id}",
            traffic="unchanged; every server goes on serving as it is",
            next="changeover rollouts",
        )
    return found


@routes.get("/rollouts", responses={200: {"model": documents.Rollouts}, **LOOKING})
def list_rollouts(
    api: The,
    who: Reader,
    state: Annotated[RolloutState | None, Query(description="Only those.")] = None,
    fleet: Annotated[bodies.Name | None, Query(description="Only of this fleet.")] = None,
    limit: Limit = PAGE,
    cursor: Cursor = None,
) -> Response:
    """The rollouts, newest first. `Link` has the next page."""
    last = _cursor(cursor)
    more: list[Rollout] = []

    def choose(found: Sequence[Rollout]) -> Sequence[Rollout]:
        wanted = [
            r
            for r in found
            if who.token.sees(r.fleet)
            and state in (None, r.state)
            and fleet in (None, r.fleet)
            and (last is None or (r.created_at, r.id) < last)
        ]
        more[:] = wanted[limit - 1 : limit] if len(wanted) > limit else []
        return wanted[:limit]

    found, unread = operations.listed(api.store, choose)
    mine = {r.id for r, _ in found}
    body: documents.Rollouts = {
        "frozen": api.store.frozen(),
        "rollouts": [{**schema.rollout(r), "counts": dict(tally.by_state)} for r, tally in found],
        # Whose fleet an unreadable rollout is of, nobody can say.
        "unread": {what: why for what, why in unread.items() if not who.token.fleets or what.partition("/")[0] in mine},
    }
    asked = {"state": state, "fleet": fleet, "limit": limit}
    link = {"Link": link_to("/v1/rollouts", {**asked, "cursor": _cursor_after(more[0])})} if more else {}
    return answer("rollouts", body, headers=link)


def _cursor_after(r: Rollout) -> str:
    return base64.urlsafe_b64encode(f"{r.created_at!r} {r.id}".encode()).decode().rstrip("=")


def _cursor(text: str | None) -> tuple[float, str] | None:
    if text is None:
        return None
    try:
        at, id = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True).decode().split(" ")
        return float(at), id
    except ValueError:
        faults = [("cursor", "it is none of ours")]
        raise Problem("bad-input", "cursor: take it from the Link of the page before", faults=faults) from None


def link_to(path: str, query: Mapping[str, object]) -> str:
    given = urlencode({name: value for name, value in query.items() if value is not None})
    return f'<{path}?{given}>; rel="next"'


def _etag(api: Api, rollout: Rollout) -> str:
    """Its own version, the newest entry of its log, without which no server of it changes, and what is in neither."""
    last, frozen, orphans = api.store.beside(rollout.id)
    beside = crc32(repr((sorted(s.id for s in orphans), frozen)).encode())
    return f'"{rollout.version}-{last}-{beside}"'


@routes.get(
    "/rollouts/{id}",
    responses={200: {"model": documents.Shown}, 304: {"description": "As it was."}, **LOOKING},
)
def show(id: RolloutId, api: The, who: Reader, seen: IfNone = None) -> Response:
    """The rollout, counts and servers. Its `ETag` changes with whatever of it changes: polling is cheap."""
    tag = _etag(api, visible(api, who, id))  # before it is read: what is told is never older than its tag
    if seen is not None and tag in _tags(seen):
        return Response(status_code=304, headers={"ETag": tag})
    return answer("rollout", schema.shown(operations.view(api.store, id)), headers={"ETag": tag})


def _tags(header: str) -> list[str]:
    return [each.strip().removeprefix("W/") for each in header.split(",")]


@routes.get("/rollouts/{id}/servers", responses={200: {"model": documents.Servers}, **LOOKING})
def list_servers(
    id: RolloutId,
    api: The,
    who: Reader,
    state: Annotated[State | None, Query(description="Only those.")] = None,
    limit: Limit = PAGE,
    cursor: Cursor = None,
) -> Response:
    """Its servers, in the order of their waves. `Link` has the next page."""
    names = [name for wave in visible(api, who, id).waves for name in wave]
    if cursor is not None and cursor not in names:
        raise Problem("bad-input", "cursor: take it from the Link of the page before", faults=[("cursor", "unknown")])
    place = 0 if cursor is None else names.index(cursor) + 1
    found: list[Upgrade] = []
    unread: dict[str, str] = {}
    while place < len(names) and len(found) + len(unread) < limit:
        some = names[place : place + min(_CHUNK, limit - len(found) - len(unread))]
        rows, not_read = readable(api.store, id, some)
        order = {row.upgrade.server: row.upgrade for row in rows if state in (None, row.upgrade.state)}
        found += [order[name] for name in some if name in order]
        unread |= not_read
        place += len(some)
    asked = {"state": state, "limit": limit, "cursor": names[place - 1] if place else None}
    link = {"Link": link_to(f"/v1/rollouts/{id}/servers", asked)} if place < len(names) else {}
    body: documents.Servers = {"servers": [schema.upgrade(u) for u in found], "unread": unread}
    return answer("servers", body, headers=link)


@routes.get("/rollouts/{id}/servers/{server}", responses={200: {"model": documents.Story}, **LOOKING})
def explain(id: RolloutId, server: ServerName, api: The, who: Reader) -> Response:
    """One server's story: what was asked, what was seen, where its traffic is, and what to do next."""
    visible(api, who, id)
    return answer("story", schema.story(operations.explain(api.store, server, rollout=id)))


@routes.get(
    "/rollouts/{id}/events",
    responses={
        200: {
            "model": documents.Events,
            "content": {STREAM: {"schema": {"type": "string", "description": "Each event's id is the stream's."}}},
        },
        **LOOKING,
    },
)
async def events(
    request: Request,
    id: RolloutId,
    api: The,
    who: Reader,
    after: Annotated[str | None, Query(pattern=EventId, description="The id of the last event that is known.")] = None,
    limit: Limit = PAGE,
    last: Annotated[str | None, Header(alias="Last-Event-ID", pattern=EventId)] = None,
) -> Response:
    """The audit log, oldest first: a page of it, or with `Accept: text/event-stream` as it grows, from `Last-Event-ID`
    or `after` on, each event once."""
    await anyio.to_thread.run_sync(visible, api, who, id)
    cursor = last or after or "0"
    if STREAM in request.headers.get("accept", ""):
        refuse_streams(api, who, full=api.live.full(id))
        door = Door(key=who.token.id, still=partial(_lets_in, api, who))
        return stream(api, who, api.live.follow(id, cursor, door))
    found = await anyio.to_thread.run_sync(partial(api.store.events, id, after=cursor, limit=limit))
    newest = found[-1].id if found else cursor
    body: documents.Events = {"events": [schema.event(entry) for entry in found], "next": newest}
    path = f"/v1/rollouts/{id}/events"
    link = {"Link": link_to(path, {"after": newest, "limit": limit})} if len(found) == limit else {}
    return answer("events", body, headers=link)


def _lets_in(api: Api, who: Caller) -> bool:
    found, now = api.store.token_now(who.token.id)
    return found is not None and found.holds(now)


def stream(api: Api, who: Caller, events: AsyncGenerator[bytes, None]) -> Response:
    """An answer that goes on for as long as they do."""

    async def counted() -> AsyncGenerator[bytes, None]:
        with _counted(api.streams, who):
            try:
                async for event in events:
                    yield event
            finally:
                await events.aclose()

    return Stream(counted())


@routes.get(
    "/rollouts/{id}/report",
    responses={200: {"model": documents.Report, "content": {"text/html": {"schema": {"type": "string"}}}}, **LOOKING},
)
async def report(
    id: RolloutId, api: The, who: Reader, format: Annotated[Literal["json", "html"], Query()] = "json"
) -> Response:
    """What happened, with the certificate of what the balancers counted where a worker can ask them."""
    found = await slowly(api, who, partial(_report, api, who, id))
    document, why = found["report"], found["uncertified"]
    if format == "html":
        from orchestrator.report import html

        headers = {
            "Content-Disposition": f'attachment; filename="{id}.html"',
            "Content-Security-Policy": "sandbox; default-src 'none'; style-src 'unsafe-inline'",
        }
        return Response(await slowly(api, who, partial(html.render, document)), media_type="text/html", headers=headers)
    return answer("report", {"report": document, "uncertified": why})


def _report(api: Api, who: Caller, id: str) -> documents.Report:
    visible(api, who, id)
    document, _, uncertified = operations.report(api.store, api.ask, id, api.waiter)
    return {"report": document, "uncertified": uncertified.message if uncertified else None}


# -- what a person decides ---------------------------------------------------------------------------------------------


def _seen(api: Api, id: str, given: str | None) -> int | None:
    """The version of the rollout's own state that the caller has seen: its servers go on meanwhile, and may."""
    if given is None or given == "*":
        return None
    known = [int(tag.strip('"').partition("-")[0]) for tag in _tags(given)]
    if len(known) == 1:
        return known[0]
    now = operations.find(api.store, id).version
    return now if now in known else known[0]


def _told(api: Api, verb: str, given: Answer) -> Response:
    one = given.servers[0] if len(given.servers) == 1 else None
    next = words.next_for(given.rollout, one) if one is not None else words.next_of(given.rollout, given.in_flight)
    return answer("answer", schema.answer(given, verb=verb, next=next), headers={"ETag": _etag(api, given.rollout)})


async def _body(request: Request, model: type[bodies.B]) -> bodies.B:
    """None at all is an empty one."""
    raw = await bodies.raw_of(request)
    if raw:
        bodies.kind_of(request, bodies.JSON)
    return bodies.parsed(raw or b"{}", model)


@contextmanager
def refusals_told(api: Api, who: Caller, id: str, verb: str) -> Iterator[None]:
    """What is refused inside, for want of a scope or since it cannot be now, stands in the audit log of the rollout
    as long as it is open: the first such of a token, and one a minute after that, so that nobody fills the log."""
    try:
        yield
    except (Conflict, Problem) as error:
        why = error.message if isinstance(error, Conflict) else error.document["detail"]
        if isinstance(error, Conflict) or error.kind == "forbidden":
            with suppress(ChangeoverError):  # what is told to who asked is why it was refused
                _tell_refusal(api, who, id, {"verb": verb, "why": why})
        raise


def _tell_refusal(api: Api, who: Caller, id: str, detail: Mapping[str, str]) -> None:
    rollout = api.store.rollout(id)
    if rollout is None or rollout.closed or not who.token.sees(rollout.fleet):
        return
    if not api.refusals.wait(f"{who.token.id} {id}"):
        api.store.note(id, Entry(event="refused", actor=who.actor, detail=detail))


def _forbid(api: Api, who: Caller, id: str, verb: Verb) -> None:
    with refusals_told(api, who, id, verb.name):
        refuse_scope(who, verb.scope)


def _route(verb: Verb, model: type[bodies.Body]) -> None:
    known = Depends(caller)
    told = {200: {"model": documents.Answer}, **TELLING}

    @routes.post(
        f"/rollouts/{{id}}:{verb.name}",
        name=verb.name,
        description=verb.does,
        responses=told,
        openapi_extra=_taking(model),
    )
    async def asked(
        request: Request, id: RolloutId, api: The, who: Caller = known, seen: IfMatch = None, dry_run: Dry = False
    ) -> Response:
        if not who.token.may(verb.scope):
            await anyio.to_thread.run_sync(_forbid, api, who, id, verb)
        said = (await _body(request, model)).model_dump()
        if (server := said.pop("server", None)) is not None:
            said["servers"] = [server]

        def work() -> Response:
            if who.token.fleets:
                visible(api, who, id)
            how = Said(who=who.token.name, actor=who.actor, seen=_seen(api, id, seen), dry=dry_run, **said)
            with nullcontext() if dry_run else refusals_told(api, who, id, verb.name):
                done = verb.act(api.store, id, how)
            return _told(api, verb.name, done)

        return await anyio.to_thread.run_sync(work)


_BODIES: Mapping[str, type[bodies.Body]] = {
    "pause": bodies.Reason,
    "resume": bodies.Nothing,
    "approve": bodies.Yes,
    "promote": bodies.Nothing,
    "abort": bodies.Reason,
    "rollback": bodies.Back,
    "retry": bodies.Again,
}
for _verb in VERBS.values():
    _route(_verb, _BODIES[_verb.name])


@routes.post("/freeze", responses={200: {"model": documents.Freeze}, **TELLING}, openapi_extra=_taking(bodies.Stop))
async def freeze(request: Request, api: The, who: Admin) -> Response:
    """From its answer on no step of any rollout begins, forward or back."""
    refuse_part(who)
    said = await _body(request, bodies.Stop)
    done = await anyio.to_thread.run_sync(partial(operations.freeze, api.store, actor=who.actor, reason=said.reason))
    return answer("freeze", schema.freeze(done, next="changeover unfreeze"))


@routes.post(
    "/unfreeze", responses={200: {"model": documents.Freeze}, **TELLING}, openapi_extra=_taking(bodies.Nothing)
)
async def unfreeze(request: Request, api: The, who: Admin) -> Response:
    """Steps begin again."""
    refuse_part(who)
    await _body(request, bodies.Nothing)
    done = await anyio.to_thread.run_sync(partial(operations.unfreeze, api.store, actor=who.actor))
    return answer("freeze", schema.freeze(done, next="changeover rollouts"))


# -- for whoever runs it -----------------------------------------------------------------------------------------------

health = APIRouter()


@health.get("/healthz", responses={200: {"model": documents.Health}})
def healthz() -> Response:
    """This process answers."""
    return answer("health", {"ok": True})


@health.get("/readyz", responses={200: {"model": documents.Readiness}, 503: {"model": documents.Readiness}})
def readyz(api: The) -> Response:
    """Redis takes writes, and a worker lives."""
    workers, why = 0, ""
    try:
        api.store.check(dev=api.dev)
        api.store.lease("readyz", owner="readyz", seconds=1.0)  # a write
        workers = len(api.store.workers())
        why = "" if workers else "no worker is alive"
    except Unreachable:  # where it is, not everybody is told
        why = "Redis does not answer"
    except UnsafeStore:
        why = "Redis would lose what it is told"
    body: documents.Readiness = {"ready": not why, "workers": workers, "why": why}
    return answer("readiness", body, status=503 if why else 200)


@health.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **documented(401, 403, 429, 503)},
)
def metrics(api: The, who: Reader) -> Response:
    """What dashboards and alarms need, in the text format of Prometheus."""
    refuse_part(who)
    return Response(api.metrics.text(), media_type=CONTENT_TYPE)
