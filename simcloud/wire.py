"""The outermost layer: what a call is, what goes wrong with it, and then moto."""

from __future__ import annotations

import json
import re
import socket
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from io import BytesIO
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import parse_qs, unquote

from flask import Flask
from moto.core.responses import BaseResponse
from moto.core.utils import convert_to_flask_response
from moto.iam.models import get_account_id_from
from moto.moto_server.werkzeug_app import (
    HTTP_METHODS,
    BackendRequest,
    DomainDispatcherApplication,
    create_backend_app,
)
from werkzeug.serving import WSGIRequestHandler, make_server
from werkzeug.test import run_wsgi_app

from simcloud.cloudformation import CloudFormation
from simcloud.ec2 import CorrectedEC2
from simcloud.elbv2 import CorrectedELBv2
from simcloud.faults import DENIAL, DENIALS, EXPIRIES, EXPIRY, THROTTLE, THROTTLES, Fault, error_body, fault_of
from simcloud.iam import denied
from simcloud.quotas import CorrectedQuotas
from simcloud.route53 import CorrectedRoute53
from simcloud.ssm import CorrectedSSM

if TYPE_CHECKING:
    from simcloud.cloud import SimCloud

_SCOPE = re.compile(r"Credential=([^/]+)/\d+/([^/]+)/([^/]+)/aws4_request")
_ROUTE53 = (
    ("POST", re.compile(r"/hostedzone/[^/]+/rrset/?$"), "ChangeResourceRecordSets"),
    ("GET", re.compile(r"/hostedzone/[^/]+/rrset/?$"), "ListResourceRecordSets"),
    ("GET", re.compile(r"/change/"), "GetChange"),
    ("POST", re.compile(r"/hostedzone/?$"), "CreateHostedZone"),
    ("GET", re.compile(r"/hostedzonesbyname/?$"), "ListHostedZonesByName"),
    ("GET", re.compile(r"/hostedzone/?$"), "ListHostedZones"),
    ("GET", re.compile(r"/hostedzone/[^/]+$"), "GetHostedZone"),
)
Start = Callable[..., Any]


@dataclass(frozen=True, kw_only=True)
class Call:
    key: str
    account: str
    region: str
    service: str
    action: str
    request: str

    @property
    def name(self) -> str:
        return f"{self.service}:{self.action}"


class Wire:
    def __init__(self, cloud: SimCloud) -> None:
        self._cloud = cloud
        self._moto = DomainDispatcherApplication(create_backend_app)
        ours: dict[str, type[BaseResponse]] = {
            "cloudformation": CloudFormation,
            "ec2": CorrectedEC2,
            "elbv2": CorrectedELBv2,
            "route53": CorrectedRoute53,
            "servicequotas": CorrectedQuotas,
            "ssm": CorrectedSSM,
        }
        corrected = ours if cloud.corrected else {}
        self._ours = {service: _app(answers, cloud) for service, answers in corrected.items()}

    def __call__(self, environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        if environ["PATH_INFO"].startswith("/sim/"):
            return self._told(environ["PATH_INFO"], body, start)
        call = _call_of(environ, body)
        self._cloud.calls[call.name] += 1
        self._cloud.keys.add(call.key)
        if self._expired(call):
            code, status = EXPIRIES.get(call.service, EXPIRY)
            return _refuse(call, start, code, "the credentials have expired", status)
        if self._cloud.troubles.too_often(call.account, call.region, call.service, call.action):
            code, status = THROTTLES.get(call.service, THROTTLE)
            self._cloud.spoiled["throttled"][call.name] += 1
            return _refuse(call, start, code, "Rate exceeded", status)
        if why := self._denied(call, environ, body):
            code, status = DENIALS.get(call.service, DENIAL)
            return _refuse(call, start, code, f"no policy of that role allows {why}", status)
        fault = self._cloud.troubles.fault(call.service, call.action)
        if fault is None:
            return self._answer(environ, body, call, start)
        return self._spoiled(fault, environ, body, call, start)

    def _spoiled(self, fault: Fault, environ: dict[str, Any], body: bytes, call: Call, start: Start) -> Iterable[bytes]:
        done: list[bytes] = []
        said: list[Any] = []
        if fault.after or not (fault.drop or fault.code):
            done = list(self._answer(environ, body, call, lambda *heads: said.extend(heads)))
        if fault.delay:
            time.sleep(fault.delay)
        if fault.drop or fault.code:
            self._cloud.spoiled["lost" if fault.drop or fault.after else "refused"][call.name] += 1
        if fault.drop:
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            raise ConnectionError("dropped as asked for")
        if fault.code:
            return _refuse(call, start, fault.code, fault.message, fault.http)
        start(*said)
        return done

    def _answer(self, environ: dict[str, Any], body: bytes, call: Call, start: Start) -> Iterable[bytes]:
        inner = {**environ, "wsgi.input": BytesIO(body), "CONTENT_LENGTH": str(len(body))}
        app = self._ours.get(call.service, self._moto)
        try:
            # moto's tables are dictionaries that its own calls change while others walk through them
            with self._cloud.lock:
                self._cloud.stacks.advance()
                said, status, headers = run_wsgi_app(app, inner)
                whole = b"".join(said)
        except Exception:
            traceback.print_exc(file=sys.stderr)
            return _refuse(call, start, "InternalError", "an error of the simulated cloud itself", 500)
        if call.action == "ChangeResourceRecordSets" and self._cloud.corrected and status.startswith("200"):
            time.sleep(self._cloud.timings.change)  # others are told to wait meanwhile
        kept = [(name, value) for name, value in headers if name.lower() not in ("content-length", "x-amzn-requestid")]
        start(status, [*kept, ("Content-Length", str(len(whole))), ("x-amzn-RequestId", call.request)])
        return [whole]

    def _denied(self, call: Call, environ: dict[str, Any], body: bytes) -> str:
        with self._cloud.lock:
            return denied(
                self._cloud,
                key=call.key,
                account=call.account,
                region=call.region,
                service=call.service,
                action=call.action,
                path=environ["PATH_INFO"],
                body=body,
            )

    def _expired(self, call: Call) -> bool:
        return call.key in self._cloud.ledgers.revoked and call.service != "sts"

    def _told(self, path: str, body: bytes, start: Start) -> Iterable[bytes]:
        """What a test or an operator asks of the cloud itself, in JSON."""
        cloud, asked = self._cloud, json.loads(body or b"{}")
        said: Any = {}
        status = "200 OK"
        try:
            match path.removeprefix("/sim/"):
                case "faults":
                    cloud.troubles.add(fault_of(asked))
                case "limits":
                    cloud.troubles.limit(asked["pattern"], size=asked["size"], refill=asked["refill"])
                case "timings":
                    cloud.timings = replace(cloud.timings, **asked)
                case "calm":
                    cloud.troubles.clear()
                case "calls":
                    said = dict(cloud.calls)
                case "tally":
                    said = {"calls": dict(cloud.calls), **{how: dict(n) for how, n in cloud.spoiled.items()}}
                    said["keys"] = sorted(cloud.keys)
                case "file" if cloud.machines is not None:  # what somebody has put on a machine's disk
                    (cloud.machines.folder(asked["id"]) / asked["path"]).write_text(asked["text"])
                case "billable":
                    said = cloud.billable(**asked)
                case "revoke":
                    cloud.revoke_credentials()
                case unknown:
                    status, said = "404 Not Found", {"error": f"there is no {unknown}"}
        except (KeyError, TypeError, ValueError) as error:
            status, said = "400 Bad Request", {"error": repr(error)}
        whole = json.dumps(said).encode()
        start(status, [("Content-Type", "application/json"), ("Content-Length", str(len(whole)))])
        return [whole]


def _call_of(environ: dict[str, Any], body: bytes) -> Call:
    scope = _SCOPE.search(environ.get("HTTP_AUTHORIZATION", ""))
    key, region, service = scope.groups() if scope is not None else ("", "", "")
    target = environ.get("HTTP_X_AMZ_TARGET", "")
    path = unquote(environ["PATH_INFO"])
    if target:
        action = target.rpartition(".")[2]
    elif service == "route53":
        method = environ["REQUEST_METHOD"]
        action = next((name for verb, at, name in _ROUTE53 if verb == method and at.search(path)), "Other")
    else:
        told = parse_qs(body.decode(errors="replace"))
        action = told.get("Action", [""])[0]
        if service == "elasticloadbalancing":  # one host for two kinds of balancers
            service = "elb" if told.get("Version") == ["2012-06-01"] else "elbv2"
    account = get_account_id_from(key) if key else ""
    return Call(key=key, account=account, region=region, service=service, action=action, request=str(uuid.uuid4()))


def _refuse(call: Call, start: Start, code: str, message: str, status: int) -> Iterable[bytes]:
    kind, body = error_body(call.service, code, message, call.request)
    headers = [("Content-Type", kind), ("Content-Length", str(len(body))), ("x-amzn-RequestId", call.request)]
    start(f"{status} Refused", headers)
    return [body]


def _app(answers: type[BaseResponse], cloud: SimCloud) -> Flask:
    """A service of this cloud, answered by our class in place of moto's."""
    ours = type(answers.__name__, (answers,), {"cloud": cloud})
    app = Flask("simcloud")
    app.debug = True  # an error of ours is raised, not shown as a page
    app.request_class = BackendRequest
    view = convert_to_flask_response(cast(type[BaseResponse], ours).dispatch)
    for path in ("/", "/<path:args>"):
        app.add_url_rule(path, endpoint="all", methods=HTTP_METHODS, view_func=view)
    return app


class _Handler(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"  # clients keep their connections
    disable_nagle_algorithm = True  # else each answer waits for the acknowledgement of its own headers

    def log(self, type: str, message: str, *args: Any) -> None: ...


def serve(cloud: SimCloud) -> Callable[[], None]:
    """Serves it on an address of its own; what ends that. Sets `cloud.url`."""
    server = make_server(cloud.address, 0, Wire(cloud), threaded=True, request_handler=_Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    cloud.url = f"http://{cloud.address}:{server.server_port}"

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return stop
