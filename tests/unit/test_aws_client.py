"""What the wire to AWS promises, against a small server that answers as told."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl

import pytest
from botocore import exceptions as sdk

from providers import errors
from providers.clients import aws
from providers.errors import ProviderError, Refused, Throttled, Transient, Unauthorized

Answer = tuple[int, str] | None  # None: the connection is closed without one
OK = (200, "<DescribeRegionsResponse><requestId>req-1</requestId><regionInfo/></DescribeRegionsResponse>")


def refusal(code: str, *, status: int = 400) -> Answer:
    told = f"<Error><Code>{code}</Code><Message>said so</Message></Error>"
    return status, f"<Response><Errors>{told}</Errors><RequestID>req-7</RequestID></Response>"


class Server:
    """Answers EC2 and STS on an address of its own; `asked` are the parameters of every request."""

    def __init__(self, answer: Callable[[Mapping[str, str]], Answer]) -> None:
        asked: list[dict[str, str]] = []
        self.asked = asked

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                params = {**dict(parse_qsl(body)), "key": self.headers["Authorization"].split("=")[1].split("/")[0]}
                asked.append(params)
                said = answer(params)
                if said is None:
                    self.close_connection = True
                    return
                self.send_response(said[0])
                self.end_headers()
                self.wfile.write(said[1].encode())

            def log_message(self, *args: Any) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def count(self, action: str) -> int:
        return sum(each["Action"] == action for each in self.asked)


@contextmanager
def serving(answer: Callable[[Mapping[str, str]], Answer]) -> Iterator[Server]:
    server = Server(answer)
    try:
        yield server
    finally:
        server.close()


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAEXAMPLEEXAMPLE00")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "example")
    monkeypatch.setattr(aws, "_bases", {})


def reach(server: Server, **more: str) -> aws.Aws:
    return aws.Aws(aws.place_of({"region": "eu-west-1", "endpoint": server.url, **more}))


KINDS = {
    errors.Throttled: aws.THROTTLED,
    errors.NoCapacity: aws.NO_CAPACITY,
    errors.QuotaExceeded: aws.QUOTA,
    errors.Busy: aws.BUSY,
    errors.GuardRefused: aws.GUARDED,
    errors.Conflict: aws.CONFLICT,
    errors.Unauthorized: aws.UNAUTHORIZED,
    errors.NotFound: aws.ABSENT | {"InvalidInstanceID.NotFound", "InvalidGroup.NotFound", "RuleNotFoundException"},
    errors.Refused: {"InvalidParameterValue", "MissingParameter", "ValidationError", "SomethingNew"},
}


@pytest.mark.parametrize(
    ("code", "kind"), [(code, kind) for kind, codes in KINDS.items() for code in sorted(codes)], ids=str
)
@pytest.mark.parametrize("writes", [False, True])
def test_every_known_code_is_one_of_ours_with_code_and_request_id(
    code: str, kind: type[ProviderError], writes: bool
) -> None:
    body = {"Error": {"Code": code, "Message": "no"}, "ResponseMetadata": {"RequestId": "r-1", "HTTPStatusCode": 400}}
    found = aws.mapped(sdk.ClientError(body, "Do"), what="ec2 do", writes=writes)
    assert (type(found), found.code, found.request_id) == (kind, code, "r-1")
    assert code in str(found)


@pytest.mark.parametrize("writes", [False, True])
def test_a_5xx_may_have_changed_something_if_the_call_was_to(writes: bool) -> None:
    body = {"Error": {"Code": "Odd"}, "ResponseMetadata": {"HTTPStatusCode": 502}}
    found = aws.mapped(sdk.ClientError(body, "Do"), what="ec2 do", writes=writes)
    assert isinstance(found, Transient) and found.ambiguous is writes


@pytest.mark.parametrize(
    ("error", "kind", "ambiguous"),
    [
        (sdk.EndpointConnectionError(endpoint_url="x"), Transient, False),
        (sdk.ConnectTimeoutError(endpoint_url="x"), Transient, False),
        (sdk.ReadTimeoutError(endpoint_url="x"), Transient, True),
        (sdk.ConnectionClosedError(endpoint_url="x"), Transient, True),
        (sdk.SSLError(endpoint_url="x", error="bad"), Transient, True),
        (sdk.NoCredentialsError(), Unauthorized, None),
        (sdk.ParamValidationError(report="x"), Refused, None),
    ],
    ids=lambda each: type(each).__name__,
)
def test_what_was_not_sent_is_told_from_what_may_have_been_done(
    error: Exception, kind: type[ProviderError], ambiguous: bool | None
) -> None:
    found = aws.mapped(error, what="ec2 do", writes=True)
    assert type(found) is kind
    assert getattr(found, "ambiguous", None) is ambiguous


@pytest.mark.parametrize("said", [None, refusal("InternalError", status=500), refusal("RequestLimitExceeded")])
def test_a_write_is_sent_once_and_a_read_twice(said: Answer) -> None:
    with serving(lambda _: said) as server:
        there = reach(server)
        with pytest.raises((Transient, Throttled)) as lost:
            there.write("ec2", "terminate_instances", InstanceIds=["i-1"])
        assert server.count("TerminateInstances") == 1
        assert getattr(lost.value, "ambiguous", True)
        with pytest.raises((Transient, Throttled)):
            there.read("ec2", "describe_regions")
        assert server.count("DescribeRegions") == aws.READ_ATTEMPTS


def test_an_address_where_nobody_answers_is_not_ambiguous() -> None:
    with serving(lambda _: OK) as server:
        pass
    with pytest.raises(Transient) as away:
        reach(server).write("ec2", "terminate_instances", InstanceIds=["i-1"])
    assert not away.value.ambiguous


def test_a_client_is_made_once_for_all_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(lambda _: OK) as server:
        place = {"region": "eu-west-1", "endpoint": server.url}
        with ThreadPoolExecutor(16) as pool:
            found = list(pool.map(lambda _: aws.aws(place), range(32)))
            list(pool.map(lambda each: each.read("ec2", "describe_regions"), found))
        assert len({id(each) for each in found}) == 1
        assert len({id(each._clients["ec2", False]) for each in found}) == 1
        assert server.count("DescribeRegions") == 32


def test_expired_credentials_are_renewed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(asked: Mapping[str, str]) -> Answer:
        return OK if asked["key"].endswith("01") else refusal("RequestExpired")

    with serving(answer) as server:
        there = reach(server)
        with pytest.raises(Unauthorized):
            there.write("ec2", "describe_regions")
        assert len(server.asked) == 2
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAEXAMPLEEXAMPLE01")
        there.write("ec2", "describe_regions")
        assert len(server.asked) == 4


def test_a_role_is_assumed_with_its_external_id_and_again_before_it_expires() -> None:
    lives = iter([30, 3600])  # seconds: the first is as good as over

    def answer(asked: Mapping[str, str]) -> Answer:
        if asked["Action"] != "AssumeRole":
            return OK
        until = (datetime.now(UTC) + timedelta(seconds=next(lives))).strftime("%Y-%m-%dT%H:%M:%SZ")
        made = "<AccessKeyId>ASIAROLE</AccessKeyId><SecretAccessKey>s</SecretAccessKey><SessionToken>t</SessionToken>"
        made += f"<Expiration>{until}</Expiration>"
        whole = f"<AssumeRoleResult><Credentials>{made}</Credentials></AssumeRoleResult>"
        return 200, f"<AssumeRoleResponse>{whole}</AssumeRoleResponse>"

    role = "arn:aws:iam::222222222222:role/changeover-target"
    with serving(answer) as server:
        there = reach(server, role=role, external_id="shop-7")
        for _ in range(3):
            there.read("ec2", "describe_regions")
        assumed = [each for each in server.asked if each["Action"] == "AssumeRole"]
        assert {(each["RoleArn"], each["ExternalId"], each["key"]) for each in assumed} == {
            (role, "shop-7", "AKIAEXAMPLEEXAMPLE00")
        }
        assert len(assumed) == 2
        assert {each["key"] for each in server.asked if each["Action"] == "DescribeRegions"} == {"ASIAROLE"}


def test_all_pages_are_read() -> None:
    def answer(asked: Mapping[str, str]) -> Answer:
        page = int(asked.get("NextToken", 0))
        token = f"<nextToken>{page + 1}</nextToken>" if page < 2 else ""
        item = f"<volumeSet><item><volumeId>vol-{page}</volumeId></item></volumeSet>"
        return 200, f"<DescribeVolumesResponse>{item}{token}</DescribeVolumesResponse>"

    with serving(answer) as server:
        found = list(reach(server).pages("ec2", "describe_volumes", "Volumes"))
        assert [each["VolumeId"] for each in found] == ["vol-0", "vol-1", "vol-2"]


def test_a_dry_run_that_would_succeed_is_success() -> None:
    for said, code in ((refusal("DryRunOperation", status=412), ""), (refusal("UnauthorizedOperation"), "Un")):
        with serving(lambda _, said=said: said) as server:
            if not code:
                reach(server).dry_run("ec2", "create_image", InstanceId="i-1", Name="abc")
            else:
                with pytest.raises(Unauthorized):
                    reach(server).dry_run("ec2", "create_image", InstanceId="i-1", Name="abc")
            assert server.asked[0]["DryRun"] == "true"


def test_the_account_that_was_named_is_the_only_one_that_is_touched() -> None:
    def answer(_: Mapping[str, str]) -> Answer:
        who = "<Arn>arn:aws:iam::111111111111:user/ops</Arn><Account>111111111111</Account>"
        whole = f"<GetCallerIdentityResult>{who}</GetCallerIdentityResult>"
        return 200, f"<GetCallerIdentityResponse>{whole}</GetCallerIdentityResponse>"

    with serving(answer) as server:
        assert reach(server).identity == "111111111111"
        reach(server, account="111111111111").right_account()
        reach(server, account="production").right_account()
        with pytest.raises(Unauthorized, match="belong to the account 111111111111"):
            reach(server, account="222222222222").right_account()


@pytest.mark.parametrize("region", [None, "", "default"])
def test_a_region_must_be_named(region: str | None) -> None:
    with pytest.raises(Refused, match="region"):
        aws.place_of({"region": region})
