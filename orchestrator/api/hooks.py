"""Webhooks: the door at which they knock, which takes no token but a signature; and the log of what came."""

from __future__ import annotations

from typing import Annotated

import anyio
from fastapi import APIRouter, Path, Query
from starlette.requests import Request
from starlette.responses import Response

from orchestrator import documents, hooks, operations, schema
from orchestrator.api import bodies
from orchestrator.api.callers import Reader, Runner, refuse_part
from orchestrator.api.problems import Problem
from orchestrator.api.routes import LOOKING, PAGE, TELLING, Cursor, Limit, The, answer, documented, link_to
from orchestrator.domain.delivery import DeliveryState
from orchestrator.domain.signatures import formed
from orchestrator.store.shapes import no_delivery

door = APIRouter()
log_of_hooks = APIRouter(prefix="/v1")
_SIGNED = {bodies.JSON: {"schema": {"description": "Whatever the sender tells of."}}}
MOST = 256 << 10  # bytes; the events that rules can be about are a tenth of that
AT_ONCE = 16  # bodies in memory that may turn out to be nobody's
DeliveryId = Annotated[str, Path(pattern=r"^[a-z0-9]{1,40}$")]


@door.post(
    "/hooks/{name}",
    status_code=202,
    responses={202: {"model": documents.Received}, **documented(400, 401, 408, 413, 415, 429, 503)},
    openapi_extra={"requestBody": {"required": True, "content": _SIGNED}},
)
async def receive(name: str, request: Request, api: The) -> Response:
    """A delivery, signed as Standard Webhooks or GitHub's are. It is kept, answered, and carried out behind that; the
    same once more changes nothing."""
    given = [header.decode("latin-1").lower() for header, _ in request.headers.raw]
    once = {header: request.headers[header] for header in given if given.count(header) == 1}

    carrier = api.carrier
    known = carrier.hooks if carrier is not None else None  # the same to the end, though the file changes meanwhile
    if carrier is None or known is None or not formed(once):
        raise _unsigned()  # before anything of the body is read
    if api.unsigned >= AT_ONCE:
        raise Problem("too-many-requests", "too many deliveries are being read", next="see docs/webhooks.md")
    api.unsigned += 1
    try:
        raw = await bodies.raw_of(request, most=MOST)
        signed = await anyio.to_thread.run_sync(hooks.verify, api.store, known, name, once, raw)
    finally:
        api.unsigned -= 1
    if signed is None:
        raise _unsigned()

    def work() -> Response:
        bodies.kind_of(request, bodies.JSON)
        found = hooks.receive(api.store, known, name, signed, bodies.strict_json(raw))
        if found is None:
            raise Problem("too-many-requests", "too many deliveries wait to be carried out")
        carrier.news.set()
        body: documents.Received = {
            "delivery": found.id,
            "state": found.delivery.state if found.delivery is not None else "",
            "again": found.again,
            "confirmed": operations.confirmed(api.store),
        }
        return answer("received", body, status=202)

    return await anyio.to_thread.run_sync(work)


def _unsigned() -> Problem:
    """The same for every reason."""
    return Problem(
        "unsigned",
        "a valid signature is wanted, of this moment and by a secret of this hook, if there is one",
        next="see docs/webhooks.md",
        headers={"WWW-Authenticate": "Signature"},
    )


@log_of_hooks.get("/deliveries", responses={200: {"model": documents.Deliveries}, **LOOKING})
def list_deliveries(
    api: The,
    who: Reader,
    hook: Annotated[bodies.Name | None, Query(description="Only of this hook.")] = None,
    state: Annotated[DeliveryState | None, Query(description="Only those.")] = None,
    limit: Limit = PAGE,
    cursor: Cursor = None,
) -> Response:
    """What came in by webhooks and what came of it, newest first. `Link` has the next page."""
    refuse_part(who)
    found = [d for d in api.store.deliveries() if hook in (None, d.hook) and state in (None, d.state)]
    ids = [d.id for d in found]
    if cursor is not None and cursor not in ids:
        raise Problem("bad-input", "cursor: take it from the Link of the page before", faults=[("cursor", "unknown")])
    begin = 0 if cursor is None else ids.index(cursor) + 1
    page = found[begin : begin + limit]
    asked = {"hook": hook, "state": state, "limit": limit, "cursor": page[-1].id if page else None}
    link = {"Link": link_to("/v1/deliveries", asked)} if begin + limit < len(found) else {}
    body: documents.Deliveries = {"deliveries": [schema.delivery(d) for d in page]}
    return answer("deliveries", body, headers=link)


@log_of_hooks.get("/deliveries/{id}", responses={200: {"model": documents.DeliveryShown}, **LOOKING})
def show_delivery(id: DeliveryId, api: The, who: Reader) -> Response:
    """One of them."""
    refuse_part(who)
    found = api.store.delivery(id)
    if found is None:
        raise no_delivery(id)
    return answer("delivery", {"delivery": schema.delivery(found)})


@log_of_hooks.post("/deliveries/{id}:redeliver", responses={200: {"model": documents.Redelivered}, **TELLING})
def redeliver(id: DeliveryId, api: The, who: Runner) -> Response:
    """Carries it out once more, by the rules as they are now. A rollout that it has started it does not start again; an
    approval is refused."""
    refuse_part(who)
    found, changed = hooks.redeliver(api.store, id, api.carrier.hooks if api.carrier is not None else None)
    if api.carrier is not None:
        api.carrier.news.set()
    confirmed = operations.confirmed(api.store)
    return answer("redelivered", schema.redelivered(found, changed=changed, confirmed=confirmed))
