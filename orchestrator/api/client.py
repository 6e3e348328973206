"""A typed client of the API: each method is one request, and answers with the document that docs/api.md describes.

    with Client("https://changeover.example", token) as client:
        rollout = client.start(fleet_file=text)["rollout"]["id"]
        for event in client.follow(rollout):
            ...

It asks again by itself where that is safe: what makes something goes under an Idempotency-Key, and all else is the
same when it is done twice. What is refused comes as the error that the command line tells, with its traffic and next
command.
"""

from __future__ import annotations

import ipaddress
import json
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, cast
from urllib.parse import quote, urljoin

import httpx2

from orchestrator import documents
from orchestrator.api.problems import OF, PREFIX
from orchestrator.errors import BadInput, ChangeoverError, Conflict, NotFound, Unreachable, UnsafeStore

TIMEOUT = 75.0  # seconds for one answer: a worker may be waited for a minute behind it
CONNECT = 10.0
PATIENCE = 30.0  # seconds for which what is away is asked again
SILENCE = 40.0  # seconds without even a comment, after which a stream of events is taken up anew
LIMIT = 500  # of one page
AGAIN = frozenset({"too-many-requests", "unreachable", "unsafe-store", "in-progress"})
_ERRORS: Mapping[str, type[ChangeoverError]] = {
    **{kind: error for error, kind in OF},
    **dict.fromkeys(("malformed", "key-reused", "unauthorized", "forbidden", "too-large"), BadInput),
    "in-progress": Conflict,
    "too-many-requests": Unreachable,
}


class Client:
    """Every method raises `ChangeoverError`: `Unreachable` when nobody answers, else what the API refuses. `timeout`:
    seconds for one answer. `patience`: seconds for which what is away, or asks for a pause, is asked again; 0 for not
    at all. `insecure`: the token may go over http:// to another host than this one. Any thread may use it."""

    def __init__(
        self,
        url: str,
        token: str,
        *,
        timeout: float = TIMEOUT,
        patience: float = PATIENCE,
        insecure: bool = False,
        sleep: Callable[[float], None] = time.sleep,
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        if not url.startswith(("http://", "https://")) or not url.isascii() or not url.isprintable():
            raise BadInput("is no http:// or https:// address", place=url, next="set CHANGEOVER_URL")
        if not insecure and not _kept_secret(url):
            raise BadInput(
                "the token would go to another host for all between to read; nothing was sent",
                place=url,
                next="write https://; or, in a network of yours alone, set CHANGEOVER_INSECURE=true (insecure=True)",
            )
        if not token.isascii() or not token.isprintable() or not token:
            raise BadInput("is no token", place="CHANGEOVER_TOKEN", next="changeover token create --help")
        self._url, self._patience, self._sleep = url.rstrip("/"), patience, sleep
        self._http = httpx2.Client(
            headers={"Authorization": f"Bearer {token}", "User-Agent": "changeover"},
            timeout=httpx2.Timeout(timeout, connect=CONNECT),
            transport=transport,
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _value: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    # -- plans and rollouts, made --------------------------------------------------------------------------------------

    def plan(self, fleet_file: str, *, key: str | None = None) -> documents.Plan:
        """What a rollout of that text would do."""
        return cast(documents.Plan, self._make("/v1/plans", {"fleet_file": fleet_file}, key))

    def start(
        self, *, plan: str | None = None, fleet_file: str | None = None, key: str | None = None
    ) -> documents.Applied:
        """A rollout of a plan that was made before, or of a fleet file. `key`: the same one starts it once."""
        body = {"plan": plan} if plan is not None else {"fleet_file": fleet_file}
        return cast(documents.Applied, self._make("/v1/rollouts", body, key))

    def would_start(self, *, plan: str | None = None, fleet_file: str | None = None) -> documents.Plan:
        """The plan that `start` would carry out, refused where it would be. Starts nothing."""
        body = {"plan": plan} if plan is not None else {"fleet_file": fleet_file}
        return cast(documents.Plan, self._make("/v1/rollouts?dry_run=true", body, None))

    # -- to look at ----------------------------------------------------------------------------------------------------

    def rollouts(self, *, state: str | None = None, fleet: str | None = None) -> documents.Rollouts:
        """All of them, newest first."""
        query = {"state": state, "fleet": fleet, "limit": LIMIT}
        pages = list(self._pages("/v1/rollouts", query))
        rollouts = [each for page in pages for each in page["rollouts"]]
        unread = {what: why for page in pages for what, why in page["unread"].items()}
        return {**pages[-1], "rollouts": rollouts, "unread": unread}  # type: ignore[typeddict-item] # a page is one

    def rollout(self, id: str) -> documents.Shown:
        return cast(documents.Shown, self._json("GET", f"/v1/rollouts/{_part(id)}"))

    def servers(self, id: str, *, state: str | None = None) -> list[documents.Upgrade]:
        """Its servers whose records can be read, in the order of their waves."""
        query = {"state": state, "limit": LIMIT}
        return [each for page in self._pages(f"/v1/rollouts/{_part(id)}/servers", query) for each in page["servers"]]

    def server(self, id: str, name: str) -> documents.Story:
        return cast(documents.Story, self._json("GET", f"/v1/rollouts/{_part(id)}/servers/{_part(name)}"))

    def events(self, id: str, *, after: str = "0") -> Iterator[documents.Event]:
        """Those that were written until now, oldest first."""
        query = {"after": after, "limit": LIMIT}
        for page in self._pages(f"/v1/rollouts/{_part(id)}/events", query):
            yield from page["events"]

    def follow(self, id: str, *, after: str = "0", quiet: float = SILENCE) -> Iterator[documents.Event | None]:
        """Every event from there on as it happens, each once, across any cut; None where nothing has happened for
        `quiet` seconds, or 15. It ends only by an error, or when nobody asks on."""
        waited = 0.0
        while True:
            try:
                for event in self._stream(f"/v1/rollouts/{_part(id)}/events", after, quiet):
                    waited = 0.0
                    after = event["id"] if event is not None else after
                    yield event
                self._sleep(1.0)  # the server has ended it
                continue
            except httpx2.ReadTimeout:
                yield None
                continue
            except (httpx2.TransportError, Unreachable, UnsafeStore) as error:
                if waited >= self._patience:
                    raise error if isinstance(error, ChangeoverError) else self._away(error) from error
            pause = min(1.0 + waited / 2, 5.0)
            self._sleep(pause)
            waited += pause

    def report(self, id: str) -> documents.Report:
        return cast(documents.Report, self._json("GET", f"/v1/rollouts/{_part(id)}/report"))

    def metrics(self) -> str:
        return self._asked("GET", "/metrics").text

    # -- webhooks that came in -----------------------------------------------------------------------------------------

    def deliveries(self, *, hook: str | None = None, state: str | None = None) -> Iterator[documents.Delivery]:
        """What came in, newest first, read page by page. `hook`, `state`: only those."""
        for page in self._pages("/v1/deliveries", {"hook": hook, "state": state, "limit": LIMIT}):
            yield from page["deliveries"]

    def delivery(self, id: str) -> documents.Delivery:
        return cast(documents.DeliveryShown, self._json("GET", f"/v1/deliveries/{_part(id)}"))["delivery"]

    def redeliver(self, id: str) -> documents.Redelivered:
        """Carries it out once more, by the rules as they are now."""
        return cast(documents.Redelivered, self._json("POST", f"/v1/deliveries/{_part(id)}:redeliver"))

    # -- what a person decides -----------------------------------------------------------------------------------------

    def pause(self, id: str, *, why: str = "", seen: str | None = None) -> documents.Answer:
        """`seen`, here and below: the ETag as which the rollout was seen; refused if it is another one by now."""
        return self._verb(id, "pause", {"why": why}, seen)

    def resume(self, id: str, *, seen: str | None = None) -> documents.Answer:
        return self._verb(id, "resume", {}, seen)

    def approve(self, id: str, *, wave: int | None = None, seen: str | None = None) -> documents.Answer:
        """`wave`: only if it is this one that waits, from 0."""
        return self._verb(id, "approve", {} if wave is None else {"wave": wave}, seen)

    def promote(self, id: str, *, seen: str | None = None) -> documents.Answer:
        return self._verb(id, "promote", {}, seen)

    def abort(self, id: str, *, why: str = "", seen: str | None = None) -> documents.Answer:
        return self._verb(id, "abort", {"why": why}, seen)

    def rollback(
        self, id: str, *, server: str | None = None, why: str = "", seen: str | None = None
    ) -> documents.Answer:
        return self._verb(id, "rollback", {"why": why} | ({} if server is None else {"server": server}), seen)

    def retry(self, id: str, *, servers: Sequence[str] | None = None, seen: str | None = None) -> documents.Answer:
        """None: every server that is held or failed."""
        return self._verb(id, "retry", {} if servers is None else {"servers": list(servers)}, seen)

    def freeze(self, *, reason: str = "") -> documents.Freeze:
        return cast(documents.Freeze, self._json("POST", "/v1/freeze", {"reason": reason}))

    def unfreeze(self) -> documents.Freeze:
        return cast(documents.Freeze, self._json("POST", "/v1/unfreeze", {}))

    # -- over the wire -------------------------------------------------------------------------------------------------

    def _make(self, path: str, body: Mapping[str, Any], key: str | None) -> dict[str, Any]:
        return self._json("POST", path, body, {"Idempotency-Key": key or str(uuid.uuid4())})

    def _verb(self, id: str, verb: str, body: Mapping[str, Any], seen: str | None) -> documents.Answer:
        headers = {} if seen is None else {"If-Match": seen}
        return cast(documents.Answer, self._json("POST", f"/v1/rollouts/{_part(id)}:{verb}", body, headers))

    def _pages(self, path: str, query: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        asked = {name: str(value) for name, value in query.items() if value is not None}
        next: str | None = str(httpx2.URL(path, params=asked))
        while next is not None:
            answer = self._asked("GET", next)
            yield self._parsed(answer)
            link = answer.links.get("next", {}).get("url")
            next = None if link is None else urljoin(path, link)

    def _json(
        self,
        method: Literal["GET", "POST"],
        path: str,
        body: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        return self._parsed(self._asked(method, path, body, headers))

    def _asked(
        self,
        method: Literal["GET", "POST"],
        path: str,
        body: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx2.Response:
        """The answer, asked for again while that is worth it."""
        waited = 0.0
        while True:
            error: ChangeoverError
            try:
                answer = self._http.request(method, self._url + path, json=body, headers=headers)
            except httpx2.TransportError as found:
                error, pause = self._away(found), 1.0
            else:
                if answer.is_success:
                    return answer
                error, pause = self._refusal(answer)
            if pause <= 0 or waited + pause > self._patience:
                raise error
            self._sleep(pause)
            waited += pause

    def _stream(self, path: str, after: str, quiet: float) -> Iterator[documents.Event | None]:
        """Server-sent events of one connection."""
        headers = {"Accept": "text/event-stream", "Last-Event-ID": after}
        timeout = httpx2.Timeout(quiet, connect=CONNECT)
        with self._http.stream("GET", self._url + path, headers=headers, timeout=timeout) as answer:
            if not answer.is_success:
                answer.read()
                raise self._refusal(answer)[0]
            data = ""
            for line in answer.iter_lines():
                if line.startswith("data:"):
                    data += line.removeprefix("data:").removeprefix(" ")
                elif line.startswith(":"):
                    yield None
                elif not line and data:
                    yield cast(documents.Event, json.loads(data))
                    data = ""

    def _refusal(self, answer: httpx2.Response) -> tuple[ChangeoverError, float]:
        """What the API says it is, and in how many seconds to ask again; 0: never."""
        try:
            said = answer.json()
            kind = str(said["type"]).removeprefix(PREFIX)
            detail, traffic, next = str(said["detail"]), str(said["traffic"]), str(said["next"])
        except (ValueError, LookupError, TypeError):  # not ours: a proxy, or another service
            told = f"{self._url} answers {answer.status_code} {answer.reason_phrase}, and not as the API does"
            again = 1.0 if answer.status_code in (502, 503, 504) else 0.0
            return Unreachable(told, next="check CHANGEOVER_URL"), again
        of = _ERRORS.get(kind, ChangeoverError)
        error = BadInput(detail, next=next) if of is BadInput else of(detail, traffic=traffic, next=next)
        after = answer.headers.get("Retry-After", "")
        return error, (float(after) if after.isdecimal() else 1.0) if kind in AGAIN else 0.0

    def _parsed(self, answer: httpx2.Response) -> dict[str, Any]:
        try:
            found = answer.json()
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise Unreachable(f"{self._url} does not answer as the API does", next="check CHANGEOVER_URL")
        return found

    def _away(self, error: httpx2.TransportError) -> Unreachable:
        why = str(error) or type(error).__name__
        return Unreachable(f"the API at {self._url} does not answer: {why}", next="check CHANGEOVER_URL")


def _kept_secret(url: str) -> bool:
    """Whether what goes there is read by nobody on the way. Raises `BadInput` for what is no address."""
    try:
        there = httpx2.URL(url)
    except httpx2.InvalidURL as error:
        raise BadInput(f"is no http:// or https:// address: {error}", place=url, next="set CHANGEOVER_URL") from None
    if there.scheme == "https" or there.host == "localhost":
        return True
    try:
        return ipaddress.ip_address(there.host).is_loopback
    except ValueError:
        return False


def _part(text: str) -> str:
    """Of a path: what names something cannot lead elsewhere."""
    if not text.strip("."):
        raise NotFound(f"there is no {text!r}", next="changeover rollouts")
    return quote(text, safe="")
