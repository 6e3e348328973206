"""The application: routes, and round them what holds for every request."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping
from typing import Any, cast

import structlog
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from pydantic import TypeAdapter
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import compile_path

from orchestrator.api.bodies import LOGGED, pointer
from orchestrator.api.hooks import door, log_of_hooks
from orchestrator.api.problems import KINDS, Problem, problem_of
from orchestrator.api.routes import Api, health, routes
from orchestrator.documents import Problem as Document
from orchestrator.errors import ChangeoverError

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Message, Receive, Send], Awaitable[None]]
log = structlog.get_logger(__name__)


def make_app(api: Api, site: ASGIApp | None = None) -> FastAPI:
    """`site` answers for every address that is none of the API's."""
    app = FastAPI(
        title="Changeover",
        summary="Replaces the servers of large fleets, many at once, without one failed user request.",
        version="1",
        docs_url=None,  # these pages load scripts from elsewhere
        redoc_url=None,
        openapi_url="/openapi.json",
        redirect_slashes=False,
        separate_input_output_schemas=False,
    )
    app.state.api = api
    app.include_router(routes)
    app.include_router(log_of_hooks)
    app.include_router(door)
    app.include_router(health)
    app.add_exception_handler(Problem, _problem)
    app.add_exception_handler(ChangeoverError, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.openapi = lambda: _described(app)  # type: ignore[method-assign] # FastAPI's way to add to the description
    app.add_middleware(Round, described=app.openapi())
    if site is not None:
        app.router.default = _beside(app.router.default, site)
    return app


def _beside(unknown: ASGIApp, site: ASGIApp) -> ASGIApp:
    async def answer(scope: Message, receive: Receive, send: Send) -> None:
        await (unknown if scope["path"].startswith("/v1/") else site)(scope, receive, send)

    return answer


def _described(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        found = get_openapi(
            title=app.title, version=app.version, summary=app.summary, routes=app.routes, openapi_version="3.1.0"
        )
        parts = found.setdefault("components", {})
        parts.setdefault("schemas", {}).pop("HTTPValidationError", None)
        parts["schemas"].pop("ValidationError", None)
        problem = TypeAdapter(Document).json_schema(ref_template="#/components/schemas/{model}")
        parts["schemas"] |= problem.pop("$defs") | {"Problem": problem}
        parts["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        for path, operations in found["paths"].items():
            for operation in operations.values():
                for parameter in operation.get("parameters", ()):  # one that is left out is not null, but not there
                    if "anyOf" in parameter["schema"]:
                        parameter["schema"] |= parameter["schema"].pop("anyOf")[0]
                if path not in ("/healthz", "/readyz", "/hooks/{name}"):
                    operation["security"] = [{"token": []}]
                if not path.startswith("/v1/"):
                    operation["responses"].pop("422", None)
        app.openapi_schema = found
    return app.openapi_schema


# -- refusals ----------------------------------------------------------------------------------------------------------


async def _problem(_request: Request, error: Exception) -> Response:
    return cast(Problem, error).response()


async def _refused(_request: Request, error: Exception) -> Response:
    return problem_of(cast(ChangeoverError, error)).response()


async def _invalid(_request: Request, error: Exception) -> Response:
    found = cast(RequestValidationError, error).errors()
    if any(each["loc"][0] == "path" for each in found):
        return Problem("not-found", "there is no such thing: no name is written like that").response()
    faults = [(_place(each["loc"]), str(each["msg"])) for each in found[:20]]
    return Problem("bad-input", "; ".join(f"{where}: {what}" for where, what in faults), faults=faults).response()


def _place(path: tuple[str | int, ...]) -> str:
    return pointer(path[1:]) if path[0] == "body" else str(path[-1])


async def _http(_request: Request, error: Exception) -> Response:
    found = cast(HTTPException, error)
    kind = {404: "not-found", 405: "method-not-allowed"}.get(found.status_code, "malformed")
    return Problem(kind, KINDS[kind][1], next="GET /openapi.json", headers=found.headers).response()


def _unexpected(request: Request, error: Exception) -> Response:
    id = secrets.token_hex(8)
    log.error("unexpected", error=id, method=request.method, path=request.url.path[:LOGGED], exc_info=error)
    return Problem(
        "internal",
        "something unexpected happened; the log of this process has more, under the id of this instance",
        traffic="unchanged, unless the records say otherwise",
        next="changeover rollouts",
        instance=f"urn:changeover:error:{id}",
    ).response()


# -- round every request -----------------------------------------------------------------------------------------------


class Round:
    """Refuses what two servers might read differently and parameters that nobody knows, marks every answer, and logs
    what changes something or is refused."""

    def __init__(self, app: Any, *, described: Mapping[str, Any]) -> None:
        self._app = app
        paths = sorted(described["paths"].items(), key=lambda each: len(each[0]), reverse=True)  # `{id}:pause` first
        self._known = [
            (
                compile_path(path)[0],
                {method.upper(): frozenset(_queried(operation)) for method, operation in operations.items()},
            )
            for path, operations in paths
        ]

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive)
        begun = False

        async def marked(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                headers = message["headers"]
                if not any(name.lower() == b"cache-control" for name, _ in headers):
                    tagged = any(name.lower() == b"etag" for name, _ in headers)
                    headers.append((b"cache-control", b"private, no-cache" if tagged else b"no-store"))
                headers.append((b"x-content-type-options", b"nosniff"))
                self._log(request, int(message["status"]))
            await send(message)

        found = self._suspect(request)
        if found is not None:
            await found.response()(scope, receive, marked)
            return
        try:
            await self._app(scope, receive, marked)
        except Exception as error:
            if begun:
                raise
            await _unexpected(request, error)(scope, receive, marked)

    def _suspect(self, request: Request) -> Problem | None:
        if "transfer-encoding" in request.headers and "content-length" in request.headers:
            return Problem("malformed", "Transfer-Encoding and Content-Length at once", headers={"Connection": "close"})
        methods = self._methods(request)
        if methods and request.method not in methods:
            allowed = ", ".join(sorted(methods))
            return Problem("method-not-allowed", f"it takes {allowed}", headers={"Allow": allowed})
        given = [name for name, _ in request.query_params.multi_items()]
        if not given:
            return None
        known = methods.get(request.method)
        wrong = [name for name in given if known is not None and name not in known]
        twice = [name for name in set(given) if given.count(name) > 1]
        if not wrong and not twice:
            return None
        name = (wrong or twice)[0][:100]
        what = f"there is no such parameter; there are {', '.join(sorted(known or ())) or 'none'}" if wrong else "twice"
        return Problem("bad-input", f"{name!r}: {what}", faults=[(name, what)])

    def _methods(self, request: Request) -> Mapping[str, frozenset[str]]:
        """What can be done there, each with the parameters that are described for it."""
        return next((methods for path, methods in self._known if path.match(request.scope["path"])), {})

    @staticmethod
    def _log(request: Request, status: int) -> None:
        if request.method == "GET" and status < 400:
            return
        known = getattr(request.state, "caller", None)
        log.info(
            "asked",
            method=request.method,
            path=request.url.path[:LOGGED],
            status=status,
            by=known.actor if known is not None else None,
            at=request.client.host if request.client else None,
        )


def _queried(operation: Mapping[str, Any]) -> Iterator[str]:
    return (each["name"] for each in operation.get("parameters", ()) if each["in"] == "query")
