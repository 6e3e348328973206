"""The wire to AWS: one session per process and account, clients that threads share, and AWS' errors as ours.

boto3's own names for things (services, operations, parameters) pass through here; its types and its exceptions do not.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import botocore.session
from botocore import exceptions as sdk
from botocore.client import Config
from botocore.credentials import DeferredRefreshableCredentials
from botocore.parsers import ResponseParserError

from providers import errors
from providers.budget import Pace, wait_for_turn, was_refused
from providers.errors import ProviderError, Refused, Throttled, Transient, Unauthorized

CONNECT_SECONDS, READ_SECONDS = 3.0, 10.0
READ_ATTEMPTS = 2  # by the SDK, the first included; a write is sent once: its next try is the caller's
CONNECTIONS = 64  # a client keeps as many open as threads have used at once, and no more than these
SETTINGS = frozenset({"account", "region", "role", "external_id", "profile", "endpoint"})


def _codes(words: str) -> frozenset[str]:
    return frozenset(words.split())


THROTTLED = _codes(
    "RequestLimitExceeded Throttling ThrottlingException ThrottledException RequestThrottled RequestThrottledException"
    " TooManyRequestsException EC2ThrottledException SlowDown BandwidthLimitExceeded PriorRequestNotComplete"
    " ProvisionedThroughputExceededException"
)
AWAY = _codes(
    "InternalError InternalFailure InternalServerError ServiceUnavailable Unavailable RequestTimeout"
    " RequestTimeoutException"
)
BUSY = _codes(  # the state of the resource does not allow it now, and will
    "IncorrectState IncorrectInstanceState InvalidTarget InvalidSnapshot.InUse DependencyViolation"
    " ConcurrentSnapshotLimitExceeded SnapshotCreationPerVolumeRateExceeded ScalingActivityInProgress"
    " InstanceRefreshInProgress OperationInProgressException Resource.AlreadyAssociated"
)
NO_CAPACITY = _codes(
    "InsufficientInstanceCapacity InsufficientHostCapacity InsufficientReservedInstanceCapacity"
    " InsufficientFreeAddressesInSubnet InsufficientVolumeCapacity Unsupported SpotMaxPriceTooLow"
)
QUOTA = _codes(
    "VcpuLimitExceeded InstanceLimitExceeded MaxSpotInstanceCountExceeded VolumeLimitExceeded MaxIOPSLimitExceeded"
    " SnapshotLimitExceeded PendingSnapshotLimitExceeded AddressLimitExceeded TooManyTargets"
    " TooManyRegistrationsForTargetId"
)
EXPIRED = _codes("ExpiredToken ExpiredTokenException RequestExpired")
UNAUTHORIZED = EXPIRED | _codes(
    "UnauthorizedOperation AccessDenied AccessDeniedException AuthFailure UnrecognizedClientException"
    " InvalidClientTokenId SignatureDoesNotMatch OptInRequired PendingVerification"
)
ABSENT = _codes(  # besides all codes that end in .NotFound
    "InvocationDoesNotExist TargetGroupNotFound LoadBalancerNotFound NoSuchHostedZone NoSuchChange"
    " InvalidInstanceId InvalidAMIID.Unavailable NoSuchResourceException"
)
GUARDED = _codes("OperationNotPermitted")
GLOBAL = frozenset({"route53"})  # limited by account, whatever the region
# Calls a second, and at once, that all workers together make of a kind in an account and region at first: about half of
# what AWS documents or is known to allow ("Request throttling for the EC2 API", quotas of ELBv2 and Route 53). Less as
# soon as it says so; never more, since others use the account too.
PACES: Mapping[tuple[str, str], Mapping[str, float]] = {
    ("ec2", "read"): {"rate": 10.0, "burst": 50.0},
    ("ec2", "write"): {"rate": 4.0, "burst": 20.0},
    ("ec2", "run_instances"): {"rate": 1.5, "burst": 4.0},
    ("elbv2", "read"): {"rate": 8.0, "burst": 20.0},
    ("elbv2", "write"): {"rate": 3.0, "burst": 10.0},
    ("route53", ""): {"rate": 4.0, "burst": 5.0},
    ("ssm", ""): {"rate": 5.0, "burst": 10.0},
    ("cloudformation", ""): {"rate": 2.0, "burst": 5.0},
    ("autoscaling", ""): {"rate": 5.0, "burst": 10.0},
}
CONFLICT = _codes("IdempotentParameterMismatch InvalidChangeBatch AlreadyExistsException TokenAlreadyExistsException")


@dataclass(frozen=True, kw_only=True)
class Place:
    """Which account and region, and how to get in. `role` is an ARN that is assumed, with `external_id` where its trust
    policy wants one; `profile` names one of the shared configuration files. With neither, whoever the worker is.
    `endpoint` replaces AWS' own address of every service."""

    account: str
    region: str
    role: str = ""
    external_id: str = ""
    profile: str = ""
    endpoint: str = ""


def place_of(settings: Mapping[str, Any]) -> Place:
    """The place that settings of a fleet file name. `Refused` for a region that is missing."""
    known = {name: str(settings[name]) for name in SETTINGS if settings.get(name) not in (None, "")}
    region = known.pop("region", "")
    if region in ("", "default"):
        raise Refused("aws needs a region: write provider: {name: aws, region: eu-west-1}")
    return Place(region=region, account=known.pop("account", "default"), **known)


_places: dict[Place, Aws] = {}
_lock = threading.Lock()


def aws(settings: Mapping[str, Any]) -> Aws:
    """The account and region that these settings name; one of each in a process, shared by its threads."""
    place = place_of(settings)
    with _lock:
        if place not in _places:
            _places[place] = Aws(place)
        return _places[place]


class Aws:
    """One account and region. Every call is bounded (connect 3 s, read 10 s) and raises `providers.errors` alone."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self._session: botocore.session.Session | None = None
        self._clients: dict[tuple[str, bool], Any] = {}

    @property
    def lane(self) -> str:
        """Account and region, in the words of the fleet file."""
        return f"{self.place.account}/{self.place.region}"

    def read(self, service: str, operation: str, **params: Any) -> dict[str, Any]:
        """One call that changes nothing, repeated once by the SDK where that may help."""
        return self._call(service, operation, params, writes=False)

    def write(self, service: str, operation: str, **params: Any) -> dict[str, Any]:
        """One call that may change something, sent once. An answer that did not come is `Transient(ambiguous=True)`."""
        return self._call(service, operation, params, writes=True)

    def object(self, bucket: str, key: str) -> tuple[bytes, str]:
        """An object of S3, and its version where the bucket keeps versions."""
        answer = self.read("s3", "get_object", Bucket=bucket, Key=key)
        try:
            whole: bytes = answer["Body"].read()
        except (sdk.BotoCoreError, OSError) as error:
            raise Transient(f"s3://{bucket}/{key}: {error}", ambiguous=False) from None
        return whole, str(answer.get("VersionId", ""))

    def dry_run(self, service: str, operation: str, **params: Any) -> None:
        """Returns if AWS would let us; `Unauthorized`, or whatever else is wrong with the call, if not."""
        try:
            self.write(service, operation, DryRun=True, **params)
        except ProviderError as error:
            if error.code != "DryRunOperation":
                raise

    def pages(self, service: str, operation: str, key: str, **params: Any) -> Iterator[dict[str, Any]]:
        """What lies under `key` in all pages of an answer, one after another."""
        asks, tells = ("Marker", "NextMarker") if service == "elbv2" else ("NextToken", "NextToken")
        token: str | None = None
        while True:
            answer = self.read(service, operation, **params, **({} if token is None else {asks: token}))
            yield from answer.get(key) or ()
            token = answer.get(tells)
            if not token:
                return

    @cached_property
    def _whoami(self) -> Mapping[str, str]:
        told = self.read("sts", "get_caller_identity")
        return {"account": str(told["Account"]), "arn": str(told["Arn"])}

    @property
    def identity(self) -> str:
        """The number of the account that these credentials belong to, as AWS itself says."""
        return self._whoami["account"]

    @property
    def caller(self) -> str:
        """The ARN of who these credentials are."""
        return self._whoami["arn"]

    def right_account(self) -> None:
        """Raises `Unauthorized` if the settings name another account by its number than the credentials belong to."""
        named = self.place.account
        if named.isdigit() and named != self.identity:
            raise Unauthorized(f"these credentials belong to the account {self.identity}, the fleet file says {named}")

    def _call(self, service: str, operation: str, params: Mapping[str, Any], *, writes: bool) -> dict[str, Any]:
        try:
            return self._once(service, operation, params, writes=writes)
        except Unauthorized as error:
            if error.code not in EXPIRED:
                raise
        # It was refused at the door, and nothing happened: once more with fresh credentials.
        self.forget()
        return self._once(service, operation, params, writes=writes)

    def _once(self, service: str, operation: str, params: Mapping[str, Any], *, writes: bool) -> dict[str, Any]:
        pace = self.pace(service, operation, writes=writes)
        if pace is not None:
            wait_for_turn(pace)
        try:
            answer: dict[str, Any] = getattr(self._client(service, writes=writes), operation)(**params)
        except (sdk.BotoCoreError, sdk.ClientError, ResponseParserError) as error:
            ours = mapped(error, what=f"{service} {operation} in {self.lane}", writes=writes)
            if pace is not None and isinstance(ours, Throttled):
                was_refused(pace)
            raise ours from None
        return answer

    def pace(self, service: str, operation: str, *, writes: bool) -> Pace | None:
        """What that call counts as; None for what nobody counts."""
        kind = operation if (service, operation) in PACES else "write" if writes else "read"
        found = PACES.get((service, kind)) or PACES.get((service, ""))
        if found is None:
            return None
        where = self.place.account if service in GLOBAL else self.lane
        return Pace(bucket=f"aws {where} {service} {kind if (service, kind) in PACES else ''}".rstrip(), **found)

    def forget(self) -> None:
        """Makes session and clients anew at the next call; calls under way go on with the old ones."""
        with _making:
            self._session = None
            self._clients = {}
            _bases.pop(self.place.profile, None)

    def _client(self, service: str, *, writes: bool) -> Any:
        """Clients are safe to share between threads; making one is not."""
        found = self._clients.get((service, writes))
        if found is not None:
            return found
        with _making:
            if (service, writes) not in self._clients:
                if self._session is None:
                    self._session = _session(self.place)
                self._clients[service, writes] = self._session.create_client(
                    service,
                    region_name=self.place.region,
                    endpoint_url=self.place.endpoint or None,
                    config=_config(attempts=1 if writes else READ_ATTEMPTS),
                )
            return self._clients[service, writes]


def _config(*, attempts: int) -> Config:
    return Config(
        connect_timeout=CONNECT_SECONDS,
        read_timeout=READ_SECONDS,
        tcp_keepalive=True,
        max_pool_connections=CONNECTIONS,
        retries={"mode": "standard", "total_max_attempts": attempts},
        user_agent_extra="changeover",
    )


_bases: dict[str, botocore.session.Session] = {}
_making = threading.RLock()  # sessions and clients are made by one thread at a time: botocore does not guard it


def _base(profile: str) -> botocore.session.Session:
    """Whoever this process is: one a profile, since each takes a quarter of a second and 23 MiB."""
    if profile not in _bases:
        _bases[profile] = botocore.session.Session(profile=profile or None)
    return _bases[profile]


def _session(place: Place) -> botocore.session.Session:
    base = _base(place.profile)
    if not place.role:
        return base
    session = botocore.session.Session()
    session.register_component("data_loader", base.get_component("data_loader"))  # what is costly is shared
    # As botocore's own assume-role profiles do it: asked for at the first call, and again before they expire.
    session._credentials = DeferredRefreshableCredentials(
        refresh_using=lambda: _assume(base, place), method="sts-assume-role"
    )
    return session


def _assume(base: botocore.session.Session, place: Place) -> dict[str, str]:
    """Credentials of the role, in the words that botocore refreshes by."""
    with _making:
        sts = base.create_client(
            "sts", region_name=place.region, endpoint_url=place.endpoint or None, config=_config(attempts=READ_ATTEMPTS)
        )
    more = {"ExternalId": place.external_id} if place.external_id else {}
    made = sts.assume_role(RoleArn=place.role, RoleSessionName="changeover", **more)["Credentials"]
    return {
        "access_key": made["AccessKeyId"],
        "secret_key": made["SecretAccessKey"],
        "token": made["SessionToken"],
        "expiry_time": made["Expiration"].isoformat(),
    }


def mapped(error: Exception, *, what: str, writes: bool) -> ProviderError:
    """AWS' error as one of ours, with its code and request id. `writes`: the call may have changed something."""
    if isinstance(error, sdk.ClientError):
        return _answered(error, what=what, writes=writes)
    said = f"{what}: {error}"
    match error:
        case sdk.EndpointConnectionError() | sdk.ConnectTimeoutError() | sdk.ProxyConnectionError():
            return Transient(said, ambiguous=False)
        case sdk.NoCredentialsError() | sdk.PartialCredentialsError() | sdk.ProfileNotFound():
            return Unauthorized(said)
        case sdk.CredentialRetrievalError() | sdk.TokenRetrievalError():
            return Transient(said, ambiguous=False)
        case sdk.ParamValidationError() | sdk.NoRegionError() | sdk.InvalidRegionError() | sdk.UnknownEndpointError():
            return Refused(said)
        case sdk.HTTPClientError() | sdk.ConnectionError() | ResponseParserError():
            return Transient(said, ambiguous=writes)
        case _:
            return Refused(said)


def _answered(error: sdk.ClientError, *, what: str, writes: bool) -> ProviderError:
    body = error.response.get("Error", {})
    meta = error.response.get("ResponseMetadata", {})
    code = str(body.get("Code", ""))
    request = meta.get("RequestId")
    status = int(meta.get("HTTPStatusCode", 0))
    said = f"{what}: {code}: {body.get('Message', '')}"
    kind: Callable[..., ProviderError] | None = next((kind for codes, kind in _KINDS if code in codes), None)
    if kind is None and code.endswith((".NotFound", "NotFoundException")):
        kind = errors.NotFound
    if kind is None and code == "ValidationError":
        kind = next((kind for words, kind in _SAID if words.search(str(body.get("Message", "")))), None)
    if code == "LimitExceededException" and what.startswith("cloudformation "):
        kind = errors.QuotaExceeded
    if kind is not None:
        return kind(said, code=code, request_id=request)
    if code in THROTTLED or (code == "LimitExceededException" and status == 400):  # the latter: ssm's and elb's word
        return Throttled(said, retry_after=1.0, code=code, request_id=request)
    if code in AWAY or status >= 500 or status == 0:
        return Transient(said, ambiguous=writes, code=code, request_id=request)
    return Refused(said, code=code, request_id=request)


_KINDS: tuple[tuple[frozenset[str], type[ProviderError]], ...] = (
    (NO_CAPACITY, errors.NoCapacity),
    (QUOTA, errors.QuotaExceeded),
    (UNAUTHORIZED, errors.Unauthorized),
    (BUSY, errors.Busy),
    (GUARDED, errors.GuardRefused),
    (CONFLICT, errors.Conflict),
    (ABSENT, errors.NotFound),
)
# CloudFormation says this one code of nearly everything: which it is, its message tells.
_SAID: tuple[tuple[re.Pattern[str], type[ProviderError]], ...] = (
    (re.compile(r"^Stack .*does not exist"), errors.NotFound),
    (re.compile(r"TerminationProtection is enabled"), errors.GuardRefused),
    (re.compile(r"_IN_PROGRESS state"), errors.Busy),
)
