"""The pages. What they show comes from `orchestrator.operations`, and what they may do is what the API allows the same
token."""

from __future__ import annotations

import hashlib
import re
import secrets
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cache, partial
from importlib import resources
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode

import anyio
import structlog
from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from orchestrator import evidence, operations, tokens, words
from orchestrator.api import bodies
from orchestrator.api.bodies import LOGGED
from orchestrator.api.callers import refuse_haste, refuse_scope
from orchestrator.api.live import Door
from orchestrator.api.problems import KINDS, Problem, problem_of
from orchestrator.api.routes import Api, EventId, refusals_told, refuse_streams, slowly, stream, visible
from orchestrator.domain.rollout import Rollout
from orchestrator.domain.token import Token
from orchestrator.errors import ChangeoverError, Conflict, NotFound, Unreachable, UnsafeStore
from orchestrator.operations import View
from orchestrator.store import Store
from orchestrator.verbs import VERBS, Said
from orchestrator.web import actions, sessions, telling
from orchestrator.web.actions import Verb
from orchestrator.web.sessions import Visitor

FORM_MOST = 8192  # bytes
SHOWN = 50  # rollouts on one page
FRESH = 1.0  # seconds for which a rollout that was read is shown to others too
AT_ONCE = 8  # pages that are made at a time, so that programs need not wait for those of large rollouts
_VIEWS = 20  # rollouts that are kept for that
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_SERVER = re.compile(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?")
_WITHIN = re.compile(r"/(?!/)[A-Za-z0-9._~/?=&%:-]{0,300}")  # an address of ours to go on to
_NUMBER = re.compile(r"[0-9]+")  # not `isdigit`, which takes "²" for one
_EVENT = re.compile(EventId)
HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'self'; frame-ancestors 'none'",
    # Not less: without any a browser sends a form with the origin "null".
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
DID: Mapping[str, str] = {
    "pause": "Paused: nothing new begins, and what is under way finishes its step.",
    "resume": "Resumed.",
    "abort": "Aborting: what has begun is being undone or finished.",
    "rollback": "Going back to the old servers.",
    "retry": "Tried again.",
    "approve": "You have said yes.",
    "promote": "The bake is over.",
    "freeze": "Frozen: no step begins anywhere.",
    "unfreeze": "No longer frozen.",
    "nothing": "There was nothing left to do: it was so already.",
}
GOES_ON = "every site goes on serving as it is; nothing was left half done"
log = structlog.get_logger(__name__)
Form = Mapping[str, str]


def make_site(api: Api, *, flower: str = "") -> Starlette:
    """`flower`: where Flower is, for links to tasks; empty where there is none."""
    site = Site(api=api, flower=flower.rstrip("/"))
    return Starlette(routes=site.routes(), exception_handlers={HTTPException: site.http})


class Out(Exception):
    """Whoever asks is not let in."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One request to a page. `did`: what its visitor has just done, from the address."""

    request: Request
    who: Visitor
    form: Form

    @property
    def token(self) -> Token:
        return self.who.caller.token

    def part(self, name: str) -> str:
        return str(self.request.path_params[name])

    def query(self, name: str) -> str:
        return self.request.query_params.get(name, "")


@dataclass(kw_only=True)
class Site:
    api: Api
    flower: str = ""
    _views: dict[str, tuple[float, View]] = field(default_factory=dict)
    _reading: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._threads = anyio.CapacityLimiter(AT_ONCE)

    def routes(self) -> list[Route]:
        return [
            self._page("/", self.rollouts),
            Route("/login", self._guarded(self.login), methods=["GET", "POST"]),
            self._page("/logout", self.logout, post=True),
            self._page("/freeze", partial(self.freezing, actions.FREEZE), post=True),
            self._page("/unfreeze", partial(self.freezing, actions.UNFREEZE), post=True),
            self._page("/rollouts/{id}", self.rollout),
            self._page("/rollouts/{id}/top", self.top),
            self._page("/rollouts/{id}/servers/{server}", self.server),
            Route("/rollouts/{id}/live", self._guarded(self.live)),
            Route("/rollouts/{id}/timeline", self._guarded(self.timeline)),
            Route("/rollouts/{id}/report", self._guarded(self.report)),
            self._page("/rollouts/{id}/{verb}", self.verb, post=True),
            Route("/page/{name}", self.asset),
        ]

    @property
    def store(self) -> Store:
        return self.api.store

    # -- who comes in ----------------------------------------------------------------------------------------------

    def _page(self, path: str, show: Callable[[Asked], Response], *, post: bool = False) -> Route:
        async def answer(request: Request, form: Form) -> Response:
            def work() -> Response:
                return show(self._let_in(request, form))

            return await anyio.to_thread.run_sync(work, limiter=self._threads)

        return Route(path, self._guarded(answer), methods=["GET", "POST"] if post else ["GET"])

    def _guarded(
        self, show: Callable[[Request, Form], Awaitable[Response]]
    ) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            try:
                return await show(request, await _form(request) if request.method == "POST" else {})
            except Out:
                where = "/login?" + urlencode({"next": _back_to(request)})
                return RedirectResponse(where, 303, headers=HEADERS)
            except Problem as problem:
                return _refused(problem)
            except ChangeoverError as error:
                return _refused(problem_of(error))
            except Exception as error:
                id = secrets.token_hex(8)
                log.error("unexpected", error=id, method=request.method, path=request.url.path[:LOGGED], exc_info=error)
                told = "something unexpected happened; the log of this process has more"
                where = f"urn:changeover:error:{id}"
                return _refused(Problem("internal", told, next="changeover rollouts", instance=where))

        return endpoint

    def _let_in(self, request: Request, form: Form) -> Asked:
        """Raises `Out`, or `Problem` for a form that our page has not made, and for whoever asks too often."""
        try:
            who = sessions.visitor(self.store, request)
        except (Unreachable, UnsafeStore):  # where it is, not everybody is told
            raise Problem("unreachable", "Redis does not answer", traffic=GOES_ON, next="changeover up") from None
        if who is None:
            raise Out
        refuse_haste(self.api.pace, who.caller.token)
        request.state.caller = who.caller
        if request.method == "POST" and not sessions.knows(who, form.get("word", "")):
            raise Problem("forbidden", "the form is of another visit than this one", next="open it again")
        if not who.caller.token.may("read"):
            raise Problem("forbidden", "this needs the scope read", next="changeover token create --help")
        return Asked(request=request, who=who, form=form)

    async def login(self, request: Request, form: Form) -> Response:
        return await anyio.to_thread.run_sync(self._login, request, form)

    def _login(self, request: Request, form: Form) -> Response:
        asked = form.get("next") or request.query_params.get("next", "")
        next = asked if _WITHIN.fullmatch(asked) else "/"
        link = form.get("link") or request.query_params.get("link", "")
        who = sessions.visitor(self.store, request)
        if request.method == "GET":
            if who is not None and not link:
                return RedirectResponse(next, 303, headers=HEADERS)
            return _html("login", next=next, link=link[:100], wrong="", flower="", who=who)
        if link and who is not None and not sessions.knows(who, form.get("word", "")):
            # Another site can lead here, and then the form is sent at once: whoever is somebody already has to say so.
            return _html("login", next=next, link=link[:100], wrong="", flower="", who=who)
        token = sessions.by_link(self.store, link) if link else tokens.whose(self.store, form.get("token", "").strip())
        if token is None:
            wrong = "This link was used, or is too old." if link else "No token that holds."
            return _html("login", 401, next=next, link="", wrong=wrong, flower="", who=who)
        refuse_haste(self.api.pace, token)
        if who is not None:
            sessions.end(self.store, who.key)
        answer = RedirectResponse(next, 303, headers=HEADERS)
        sessions.keep(answer, sessions.begin(self.store, token), request)
        return answer

    def logout(self, asked: Asked) -> Response:
        if asked.request.method == "GET":
            raise Problem("method-not-allowed", "it is a button, on every page")
        sessions.end(self.store, asked.who.key)
        answer = RedirectResponse("/login", 303, headers=HEADERS)
        sessions.forget(answer)
        return answer

    # -- to look at ------------------------------------------------------------------------------------------------

    def rollouts(self, asked: Asked) -> Response:
        token, now = asked.token, self.store.now()
        given = asked.query("from")
        first = int(given) if _NUMBER.fullmatch(given) and len(given) < 7 else 0
        more: list[Rollout] = []

        def choose(found: Any) -> list[Rollout]:
            mine = [r for r in found if token.sees(r.fleet)]
            ordered = sorted(mine, key=lambda r: r.ended)  # it is stable: newest first among either
            more[:] = ordered[first + SHOWN :]
            return ordered[first : first + SHOWN]

        found, unread = operations.listed(self.store, choose)
        shown = [
            telling.listed(
                r,
                tally,
                self.store.users(r.id),
                sum(what.partition("/")[0] == r.id and "/" in what for what in unread),
                now=now,
            )
            for r, tally in found
        ]
        shown.sort(key=lambda each: not (each.needs or (each.users is not None and each.users.failed)))
        lost = {} if token.fleets else {what: why for what, why in unread.items() if "/" not in what}
        return self._html(
            asked,
            "rollouts",
            needing=[each for each in shown if each.needs or (each.users is not None and each.users.failed)],
            shown=shown,
            lost=lost,
            frozen=self.store.frozen(),
            older=first + SHOWN if more else 0,
            freezing=token.may("admin") and not token.fleets,
        )

    def rollout(self, asked: Asked) -> Response:
        r = self._visible(asked)
        after = self.store.last_event(r.id)  # before it is read: what follows is missed by nobody
        view = self._view(r)
        cells = telling.kinds(view)
        size = "few" if len(cells) <= 60 else "some" if len(cells) <= 400 else "many"
        waves = [[(name, cells[name]) for name in wave] for wave in view.rollout.waves]
        return self._html(
            asked,
            "rollout",
            **self._top(asked, view),
            after=after,
            waves=waves,
            size=size,
            base=f"/rollouts/{r.id}/servers/",
        )

    def top(self, asked: Asked) -> Response:
        """The part above the servers, for a page that is open."""
        return self._html(asked, "_top", **self._top(asked, self._view(self._visible(asked))))

    def _top(self, asked: Asked, view: View) -> dict[str, Any]:
        r, now = view.rollout, self.store.now()
        top = telling.top(view, self.store.users(r.id), asked.token, now=now)
        return {"top": top, "now": now, "kinds": telling.KINDS}

    def server(self, asked: Asked) -> Response:
        r = self._visible(asked)
        name = asked.part("server")
        if not _SERVER.fullmatch(name):
            raise NotFound(f"there is no server like that in rollout {r.id}")
        story = operations.explain(self.store, name, rollout=r.id)
        u = story.upgrade
        wave = next(n for n, names in enumerate(r.waves) if name in names)
        happened: list[dict[str, Any]] = []
        before: float | None = None
        for entry, times in evidence.folded(story.entries):
            happened.append(
                {
                    "at": entry.at,
                    "delta": "" if before is None else f"+{words.span(entry.at - before)}",
                    "says": words.happened(entry),
                    "event": entry.event,
                    "times": times,
                    "by": evidence.by_whom(entry),
                    "lines": evidence.lines(entry.detail),
                }
            )
            before = entry.at
        waits = story.frozen is not None and u is not None and u.state in ("running", "waiting")
        return self._html(
            asked,
            "server",
            rollout=r,
            name=name,
            wave=wave,
            u=u,
            kind=telling.kind(u) if u is not None else "lost",
            kinds=telling.KINDS,
            unread=story.unread,
            untouched=words.UNTOUCHED,
            happened=happened,
            slowed=[words.slowed(each, bucket) for each, bucket in story.slowed.items()],
            frozen=story.frozen if waits else None,
            verbs=actions.of_server(r, u, asked.token) if u is not None else [],
            next=words.next_for(r, u) if u is not None else words.next_for_unread(r, name),
            also=words.otherwise(r, u) if u is not None and u.asks_person else "",
            tasks=f"{self.flower}/tasks?name={quote(f'tasks. {r.id}:{name}:')}" if self.flower else "",
        )

    async def live(self, request: Request, _form: Form) -> Response:
        """The events of a rollout, as the page's script reads them; one that was cut goes on after the last."""
        try:
            asked = await anyio.to_thread.run_sync(self._let_in, request, {})
        except Out:
            return Response("come in again", 401, media_type="text/plain")
        r = await anyio.to_thread.run_sync(self._visible, asked)
        after = request.headers.get("last-event-id") or asked.query("after") or "0"
        if not _EVENT.fullmatch(after):
            raise Problem("bad-input", "after: the id of an event")
        refuse_streams(self.api, asked.who.caller, full=self.api.live.full(r.id, telling.told))
        door = Door(key=asked.who.key, still=partial(sessions.still, self.store, asked.who.key))
        return stream(self.api, asked.who.caller, self.api.live.follow(r.id, after, door, telling.told))

    async def timeline(self, request: Request, form: Form) -> Response:
        asked = await anyio.to_thread.run_sync(self._let_in, request, form)

        def work() -> Response:
            from orchestrator.report.picture import draw
            from orchestrator.report.telling import tell

            r = self._visible(asked)
            view, entries = self._view(r), operations.events(self.store, r.id)
            told = tell(r, view.upgrades, entries, self.store.document("spec", r.id), now=self.store.now())
            return self._html(asked, "timeline", rollout=r, picture=draw(told), summary=told["summary"])

        return await slowly(self.api, asked.who.caller, work)

    async def report(self, request: Request, form: Form) -> Response:
        asked = await anyio.to_thread.run_sync(self._let_in, request, form)

        def work() -> Response:
            from orchestrator.report import html

            r = self._visible(asked)
            document, _, _ = operations.report(self.store, self.api.ask, r.id, self.api.waiter)
            headers = {
                **HEADERS,
                "Content-Disposition": f'attachment; filename="{r.id}.html"',
                "Content-Security-Policy": "sandbox; default-src 'none'; style-src 'unsafe-inline'",
            }
            return HTMLResponse(html.render(document), headers=headers)

        return await slowly(self.api, asked.who.caller, work)

    def _visible(self, asked: Asked) -> Rollout:
        id = asked.part("id")
        if not _ID.fullmatch(id):
            raise NotFound("there is no such rollout", next="changeover rollouts")
        return visible(self.api, asked.who.caller, id)

    def _view(self, r: Rollout) -> View:
        """As it was read within the last second, for whoever asks, unless a person has decided something since."""
        with self._reading:
            at, view = self._views.get(r.id, (0.0, None))
            if view is not None and time.monotonic() - at < FRESH and view.rollout.version == r.version:
                return view
            view = operations.view(self.store, r.id)
            self._views.pop(r.id, None)
            self._views[r.id] = (time.monotonic(), view)
            if len(self._views) > _VIEWS:
                del self._views[next(iter(self._views))]
            return view

    # -- to decide -------------------------------------------------------------------------------------------------

    def verb(self, asked: Asked) -> Response:
        """What it would do, and a button; or, pressed, it is done."""
        verb = actions.VERBS.get(asked.part("verb"))
        if verb is None:
            raise Problem("not-found", "there is no such page")
        r = self._visible(asked)
        acting = asked.request.method == "POST"
        with refusals_told(self.api, asked.who.caller, r.id, verb.name) if acting else nullcontext():
            return self._verb(asked, verb, r, acting=acting)

    def _verb(self, asked: Asked, verb: Verb, r: Rollout, *, acting: bool) -> Response:
        refuse_scope(asked.who.caller, verb.scope)
        name = asked.form.get("server") or asked.query("server") or None
        if name is not None and (verb.name not in actions.ONE or not any(name in wave for wave in r.waves)):
            raise NotFound(f"there is no server like that in rollout {r.id}", next=f"changeover show {r.id}")
        if acting:
            return self._done(asked, verb, r, name)
        row = self.store.row(r.id, name) if name is not None else None
        refused = ""
        would = None
        try:
            would = VERBS[verb.name].act(self.store, r.id, replace(_said(asked, name), dry=True))
        except Conflict as error:
            refused = error.message
        return self._html(
            asked,
            "confirm",
            verb=verb,
            does=actions.ONE[verb.name] if name is not None else verb.does,
            rollout=r,
            name=name,
            would=would,
            refused=refused,
            moving=would.servers or would.in_flight if would is not None else (),
            traffic=row.upgrade.traffic if row is not None else "",
            seen=operations.seen_of(row.upgrade) if row is not None else "",
        )

    def _done(self, asked: Asked, verb: Verb, r: Rollout, name: str | None) -> Response:
        given = asked.form.get("version", "")
        version = int(given) if _NUMBER.fullmatch(given) and len(given) < 20 else -1
        why = asked.form.get("why", "").strip()
        if len(why) > 1000 or not why.isprintable():
            raise Problem("bad-input", "why: one line, of a thousand characters at most")
        was = asked.form.get("seen") if name is not None else None
        said = replace(_said(asked, name), why=why, seen=version, was=was)
        answer = VERBS[verb.name].act(self.store, r.id, said)
        where = f"/rollouts/{r.id}" + (f"/servers/{name}" if name is not None else "")
        return RedirectResponse(f"{where}?did={verb.name if answer.changed else 'nothing'}", 303, headers=HEADERS)

    def freezing(self, verb: Verb, asked: Asked) -> Response:
        refuse_scope(asked.who.caller, verb.scope)
        if asked.token.fleets:
            raise Problem("forbidden", "this concerns every fleet; this token is not for all of them")
        frozen = self.store.frozen()
        if asked.request.method == "GET":
            return self._html(
                asked,
                "confirm",
                verb=verb,
                does=verb.does,
                rollout=None,
                name=None,
                would=None,
                refused="" if (frozen is None) == (verb is actions.FREEZE) else "It is so already.",
                moving=(),
                traffic="",
                seen="",
            )
        actor = asked.who.caller.actor
        if verb is actions.FREEZE:
            why = asked.form.get("why", "").strip()
            if len(why) > 1000 or not why.isprintable():
                raise Problem("bad-input", "why: one line, of a thousand characters at most")
            done = operations.freeze(self.store, actor=actor, reason=why)
        else:
            done = operations.unfreeze(self.store, actor=actor)
        return RedirectResponse(f"/?did={verb.name if done.changed else 'nothing'}", 303, headers=HEADERS)

    # -- how it looks ----------------------------------------------------------------------------------------------

    async def asset(self, request: Request) -> Response:
        found = assets().get(str(request.path_params["name"]))
        if found is None:
            return _refused(Problem("not-found", "there is no such file"))
        kind, body = found
        headers = {**HEADERS, "Cache-Control": "public, max-age=31536000, immutable"}  # its name has its hash
        return Response(body, media_type=kind, headers=headers)

    async def http(self, request: Request, error: Exception) -> Response:
        """For an address that is nobody's: as whoever asks can read it."""
        status = error.status_code if isinstance(error, HTTPException) else 404
        kind = {404: "not-found", 405: "method-not-allowed"}.get(status, "malformed")
        problem = Problem(kind, KINDS[kind][1], next="GET /openapi.json")
        return _refused(problem) if "text/html" in request.headers.get("accept", "") else problem.response()

    def _html(self, asked: Asked, template: str, **context: Any) -> Response:
        said = DID.get(asked.query("did"), "")
        return _html(template, who=asked.who, did=said, flower=self.flower, **context)


def _said(asked: Asked, server: str | None) -> Said:
    servers = None if server is None else [server]
    return Said(who=asked.token.name, actor=asked.who.caller.actor, servers=servers)


def _refused(problem: Problem) -> Response:
    return _html("error", problem.status, problem=problem.document, headers=problem.headers, flower="")


def _html(template: str, status: int = 200, *, headers: Mapping[str, str] | None = None, **context: Any) -> Response:
    text = environment().get_template(f"{template}.html.j2").render(**context)
    return HTMLResponse(text, status, headers={**(headers or {}), **HEADERS})


def _back_to(request: Request) -> str:
    where = request.url.path
    return where if request.method == "GET" and _WITHIN.fullmatch(where) else "/"


async def _form(request: Request) -> Form:
    """Of what is there twice, the last. Raises `Problem`, also for one that no page of ours has sent."""
    if not sessions.from_our_page(request):
        raise Problem("forbidden", "this was not sent by a page of ours", next="open the page, and ask there")
    bodies.kind_of(request, "application/x-www-form-urlencoded")
    said = request.headers.get("content-length", "")
    if not said.isdigit() or int(said[:9]) > FORM_MOST:
        raise Problem("too-large", f"{FORM_MOST} bytes are the most", headers={"Connection": "close"})
    raw = await bodies.raw_of(request)
    try:
        return dict(parse_qsl(raw.decode(), keep_blank_values=True, max_num_fields=20, strict_parsing=bool(raw)))
    except ValueError:
        raise Problem("malformed", "the form cannot be read") from None


@cache
def environment() -> Environment:
    made = Environment(
        loader=PackageLoader("orchestrator.web"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "n": "{:,}".format,
        "many": words.many,
        "moment": words.moment,
        "clock": words.clock,
        "span": words.span,
        "where": words.where,
        "readable": lambda name: str(name).replace("_", " "),
    }
    names = {name.partition(".")[0] + "." + name.rpartition(".")[2]: name for name in assets()}
    made.globals |= {"asset": lambda name: f"/page/{names[name]}", "did": "", "who": None}
    return made


@cache
def assets() -> Mapping[str, tuple[str, bytes]]:
    """Files of the page by their names, which change with what is in them: its kind, and that."""
    here = resources.files("orchestrator.web") / "static"
    palette = (resources.files("orchestrator.report") / "templates" / "palette.css").read_bytes()
    given = {
        "page.css": ("text/css", palette + (here / "page.css").read_bytes()),
        "page.js": ("text/javascript", (here / "page.js").read_bytes()),
        "icon.svg": ("image/svg+xml", (here / "icon.svg").read_bytes()),
    }
    found = {}
    for name, (kind, body) in given.items():
        stem, _, ending = name.partition(".")
        found[f"{stem}.{hashlib.sha256(body).hexdigest()[:12]}.{ending}"] = (kind, body)
    return found
