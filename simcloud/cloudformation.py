"""CloudFormation as far as a stack with a server needs it: stacks take their time, fail with a reason, roll back, and
may refuse to be deleted.

moto has a CloudFormation of its own, which needs cfn-lint and much else to be installed, makes everything at once and
never fails: this one is written from AWS' API reference (CreateStack, DeleteStack, DescribeStacks, DescribeStackEvents,
UpdateTerminationProtection, ValidateTemplate) and user guide ("Stack failure options", "Stack status codes"). It makes
instances and security groups.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from moto.core.exceptions import ServiceException
from moto.core.responses import ActionResult, BaseResponse, EmptyResult
from moto.core.utils import utcnow
from moto.s3.exceptions import S3ClientError
from moto.s3.models import s3_backends

from simcloud.ec2 import SimInstance, ec2, launch_for
from simcloud.templates import Answers, ValidationError, capabilities_of, in_order, names, template_of, values_of

if TYPE_CHECKING:
    from simcloud.cloud import SimCloud

INSTANCE, GROUP = "AWS::EC2::Instance", "AWS::EC2::SecurityGroup"
INLINE = 51200  # bytes of a template that a call carries
PAGE = 100


@dataclass
class Part:
    """A resource of a stack."""

    logical: str
    kind: str
    status: str = ""
    reason: str = ""
    made: Any = None
    until: float = 0.0  # from when on it may be ready

    @property
    def physical(self) -> str:
        return str(self.made.id) if self.made is not None else ""


@dataclass(kw_only=True)
class Stack:
    """One stack, which goes on whenever somebody looks. `asked`: what CreateStack was called with."""

    cloud: SimCloud
    account: str
    region: str
    name: str
    body: str
    parameters: Mapping[str, str]
    tags: dict[str, str]
    capabilities: list[str]
    on_failure: str
    token: str
    asked: str
    protected: bool = False
    status: str = "CREATE_IN_PROGRESS"
    reason: str = ""
    outputs: list[dict[str, str]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    id: str = ""
    made_at: Any = None

    def __post_init__(self) -> None:
        self.id = f"arn:aws:cloudformation:{self.region}:{self.account}:stack/{self.name}/{uuid.uuid4()}"
        self.made_at = utcnow()
        self.template = template_of(self.body)
        self.answers = Answers(self.template, self.parameters, ref=self._ref, attribute=self._attribute)
        wanted = self.template["Resources"]
        self.parts = {
            name: Part(name, wanted[name]["Type"])
            for name in in_order(wanted)
            if "Condition" not in wanted[name] or self.answers.holds(wanted[name]["Condition"])
        }
        self._say("User Initiated")

    # -- what happens -------------------------------------------------------------------------------------------------

    def advance(self) -> None:
        while self._step():
            pass

    def _step(self) -> bool:
        """Whether anything has changed."""
        match self.status:
            case "CREATE_IN_PROGRESS":
                return self._create()
            case "ROLLBACK_IN_PROGRESS":
                return self._end("ROLLBACK_COMPLETE", "ROLLBACK_FAILED")
            case "DELETE_IN_PROGRESS":
                return self._end("DELETE_COMPLETE", "DELETE_FAILED")
            case _:
                return False

    def _create(self) -> bool:
        for part in self.parts.values():
            if part.status == "CREATE_COMPLETE":
                continue
            if not part.status:
                self._turn(part, "CREATE_IN_PROGRESS")
                part.until = self.cloud.now() + self.cloud.timings.stack
                try:
                    part.made = self._make(part)
                except ServiceException as error:
                    self._failed(part, self._told(error.message))
                    return True
                if part.logical in self.cloud.stacks.failing:
                    self._failed(part, self.cloud.stacks.failing[part.logical])
                return True
            state = part.made.state if isinstance(part.made, SimInstance) else "running"
            if state == "terminated":
                self._failed(part, f"Instance {part.physical} failed to stabilize. Current state: terminated.")
                return True
            if state != "running" or self.cloud.now() < part.until:
                return False
            self._turn(part, "CREATE_COMPLETE")
            return True
        told = self.template.get("Outputs") or {}
        self.outputs = [
            {"OutputKey": key, "OutputValue": str(self.answers.of(each["Value"]))} for key, each in told.items()
        ]
        self._becomes("CREATE_COMPLETE")
        return True

    @staticmethod
    def _told(message: str) -> str:
        said = f"{message} (Service: Ec2, Status Code: 400, Request ID: {uuid.uuid4()}) (SDK Attempt Count: 1)"
        return (
            f'Resource handler returned message: "{said}" '
            f"(RequestToken: {uuid.uuid4()}, HandlerErrorCode: InvalidRequest)"
        )

    def _failed(self, part: Part, reason: str) -> None:
        self._turn(part, "CREATE_FAILED", reason)
        words = f"The following resource(s) failed to create: [{part.logical}]. "
        match self.on_failure:
            case "DO_NOTHING":
                self._becomes("CREATE_FAILED", words)
            case "DELETE":
                self._becomes("DELETE_IN_PROGRESS", f"{words}Delete requested by user.")
            case _:
                self._becomes("ROLLBACK_IN_PROGRESS", f"{words}Rollback requested by user.")

    def delete(self) -> None:
        if self.protected:
            raise ValidationError(f"Stack [{self.name}] cannot be deleted while TerminationProtection is enabled")
        if self.status in ("DELETE_IN_PROGRESS", "DELETE_COMPLETE"):
            return
        for part in self.parts.values():
            if part.status in ("DELETE_FAILED", "DELETE_IN_PROGRESS"):
                part.status = "CREATE_COMPLETE"
        self._becomes("DELETE_IN_PROGRESS", "User Initiated")

    def _end(self, done: str, failed: str) -> bool:
        for part in reversed(self.parts.values()):
            if part.made is None or part.status in ("DELETE_COMPLETE", "DELETE_FAILED", "DELETE_SKIPPED"):
                continue
            if part.status != "DELETE_IN_PROGRESS":
                return self._begin_to_end(part)
            if isinstance(part.made, SimInstance) and part.made.state != "terminated":
                return False
            self._turn(part, "DELETE_COMPLETE")
            return True
        if stuck := [part.logical for part in self.parts.values() if part.status == "DELETE_FAILED"]:
            self._becomes(failed, f"The following resource(s) failed to delete: {names(stuck)}. ")
        else:
            self._becomes(done)
        return True

    def _begin_to_end(self, part: Part) -> bool:
        policy = self.template["Resources"][part.logical].get("DeletionPolicy", "Delete")
        if policy == "Retain" or (policy == "RetainExceptOnCreate" and self.status == "DELETE_IN_PROGRESS"):
            self._turn(part, "DELETE_SKIPPED")
            return True
        self._turn(part, "DELETE_IN_PROGRESS")
        if part.logical in self.cloud.stacks.stuck:
            self._turn(part, "DELETE_FAILED", self.cloud.stacks.stuck[part.logical])
        elif part.kind == GROUP:
            self._end_group(part)
        elif part.made.disable_api_termination:
            why = (
                f"The instance '{part.physical}' may not be terminated. Modify its 'disableApiTermination' instance "
                "attribute and try again."
            )
            self._turn(part, "DELETE_FAILED", self._told(why))
        else:
            part.made.terminate()
        return True

    def _end_group(self, part: Part) -> None:
        if any(part.made in each.security_groups for each in self._ec2.all_instances() if each.state != "terminated"):
            self._turn(part, "DELETE_FAILED", self._told(f"resource {part.physical} has a dependent object"))
        else:
            self._ec2.delete_security_group(group_id=part.physical)

    # -- its resources ------------------------------------------------------------------------------------------------

    @property
    def _ec2(self) -> Any:
        return ec2(self.account, self.region)

    def _ref(self, name: str) -> str:
        own = {"StackName": self.name, "StackId": self.id, "Region": self.region, "AccountId": self.account}
        return own[name.removeprefix("AWS::")] if name.startswith("AWS::") else self.parts[name].physical

    def _attribute(self, name: str, attribute: str) -> str:
        made = self.parts[name].made
        match self.parts[name].kind, attribute:
            case "AWS::EC2::Instance", "PrivateIp":
                return str(made.private_ip)
            case "AWS::EC2::Instance", "AvailabilityZone":
                return str(made.placement.zone)
            case ("AWS::EC2::Instance", "InstanceId") | ("AWS::EC2::SecurityGroup", "GroupId"):
                return str(made.id)
        raise ValidationError(f"Template error: resource {name} does not support attribute type {attribute}")

    def _make(self, part: Part) -> Any:
        properties = self.answers.of(self.template["Resources"][part.logical].get("Properties") or {})
        if part.kind == INSTANCE:
            return self._launch(properties, part.logical)
        if part.kind == GROUP:
            name = properties.get("GroupName") or f"{self.name}-{part.logical}-{uuid.uuid4().hex[:12].upper()}"
            return self._ec2.create_security_group(name, properties["GroupDescription"], vpc_id=properties.get("VpcId"))
        raise ValidationError(f"this cloud makes no {part.kind}")

    def _launch(self, properties: Mapping[str, Any], logical: str) -> SimInstance:
        """Whoever calls holds the cloud's lock."""
        tags = {each["Key"]: each["Value"] for each in properties.get("Tags", [])}
        ours = {"stack-name": self.name, "stack-id": self.id, "logical-id": logical}
        tags = {**self.tags, **tags, **{f"aws:cloudformation:{key}": value for key, value in ours.items()}}
        spec = [{"Key": key, "Value": str(value)} for key, value in tags.items()]
        wanted = {
            **{name: properties[name] for name in _AS_THEY_ARE if name in properties},
            "MinCount": 1,
            "MaxCount": 1,
            "TagSpecifications": [{"ResourceType": "instance", "Tags": spec}],
        }
        if properties.get("IamInstanceProfile"):
            wanted["IamInstanceProfile"] = {"Name": properties["IamInstanceProfile"]}
        if properties.get("NetworkInterfaces"):
            wanted["NetworkInterfaces"] = [
                {("Groups" if key == "GroupSet" else key): value for key, value in nic.items()}
                for nic in properties["NetworkInterfaces"]
            ]
        return launch_for(self.cloud, self.account, self.region, wanted)

    # -- what is told -------------------------------------------------------------------------------------------------

    def _turn(self, part: Part, status: str, reason: str = "") -> None:
        part.status, part.reason = status, reason
        self._note(part.logical, part.physical, part.kind, status, reason)

    def _becomes(self, status: str, reason: str = "") -> None:
        self.status, self.reason = status, reason
        self._say(reason)

    def _say(self, reason: str = "") -> None:
        self._note(self.name, self.id, "AWS::CloudFormation::Stack", self.status, reason)

    def _note(self, logical: str, physical: str, kind: str, status: str, reason: str) -> None:
        event = {
            "StackId": self.id,
            "EventId": str(uuid.uuid4()),
            "StackName": self.name,
            "LogicalResourceId": logical,
            "PhysicalResourceId": physical,
            "ResourceType": kind,
            "Timestamp": utcnow(),
            "ResourceStatus": status,
            "ClientRequestToken": self.token,
        }
        self.events.append({**event, **({"ResourceStatusReason": reason} if reason else {})})

    def told(self) -> dict[str, Any]:
        hidden = {name for name, each in (self.template.get("Parameters") or {}).items() if each.get("NoEcho")}
        whole = {
            "StackId": self.id,
            "StackName": self.name,
            "CreationTime": self.made_at,
            "StackStatus": self.status,
            "Capabilities": self.capabilities,
            "EnableTerminationProtection": self.protected,
            "Parameters": [
                {"ParameterKey": key, "ParameterValue": "****" if key in hidden else value}
                for key, value in self.parameters.items()
            ],
            "Tags": [{"Key": key, "Value": value} for key, value in self.tags.items()],
            "Outputs": self.outputs,
        }
        return {**whole, **({"StackStatusReason": self.reason} if self.reason else {})}


_AS_THEY_ARE = (
    "ImageId",
    "InstanceType",
    "SubnetId",
    "SecurityGroupIds",
    "KeyName",
    "BlockDeviceMappings",
    "UserData",
    "EbsOptimized",
    "DisableApiTermination",
    "PrivateIpAddress",
)


class Stacks:
    """All stacks of one cloud. Whoever calls holds the cloud's lock. `failing` and `stuck`: logical ids of resources
    that cannot be made, or deleted, with the reason."""

    def __init__(self) -> None:
        self.all: dict[str, Stack] = {}  # by id, the deleted ones among them
        self.failing: dict[str, str] = {}
        self.stuck: dict[str, str] = {}

    def advance(self) -> None:
        for stack in list(self.all.values()):
            stack.advance()

    def there(self, account: str, region: str) -> Iterator[Stack]:
        """Those that are not deleted, the newest first."""
        for stack in reversed(self.all.values()):
            if (stack.account, stack.region) == (account, region) and stack.status != "DELETE_COMPLETE":
                yield stack


class AlreadyExists(ServiceException):
    code = "AlreadyExistsException"


class TokenAlreadyExists(ServiceException):
    code = "TokenAlreadyExistsException"


class InsufficientCapabilities(ServiceException):
    code = "InsufficientCapabilitiesException"


class CloudFormation(BaseResponse):
    cloud: SimCloud

    def __init__(self) -> None:
        super().__init__(service_name="cloudformation")
        self.automated_parameter_parsing = True

    def create_stack(self) -> ActionResult:
        stacks, name, token = self.cloud.stacks, self._get_param("StackName"), self._get_param("ClientRequestToken", "")
        asked = json.dumps({k: v for k, v in self.querystring.items() if k != "ClientRequestToken"}, sort_keys=True)
        before = next((each for each in stacks.all.values() if token and each.token == token), None)
        if before is not None:
            if (before.name, before.asked) == (name, asked) and before.status != "DELETE_COMPLETE":
                return ActionResult({"StackId": before.id})
            raise TokenAlreadyExists(f"A stack operation with the client request token {token} already exists")
        if any(each.name == name for each in stacks.there(self.current_account, self.region)):
            raise AlreadyExists(f"Stack [{name}] already exists")
        body = self._body()
        template = template_of(body)
        told = {each["ParameterKey"]: each["ParameterValue"] for each in self._get_param("Parameters", [])}
        capabilities = self._get_param("Capabilities", [])
        if missing := sorted(set(capabilities_of(template)) - set(capabilities)):
            raise InsufficientCapabilities(f"Requires capabilities : [{', '.join(missing)}]")
        stack = Stack(
            cloud=self.cloud,
            account=self.current_account,
            region=self.region,
            name=name,
            body=body,
            parameters=values_of(template, told),
            tags={each["Key"]: each["Value"] for each in self._get_param("Tags", [])},
            capabilities=capabilities,
            on_failure=self._get_param("OnFailure", "ROLLBACK"),
            token=token,
            asked=asked,
            protected=self._get_bool_param("EnableTerminationProtection", False),
        )
        stacks.all[stack.id] = stack
        self.cloud.ledgers.shows[stack.id] = self.cloud.now() + self.cloud.timings.lag
        return ActionResult({"StackId": stack.id})

    def _body(self) -> str:
        if url := self._get_param("TemplateURL"):
            return self._object(url)
        body = str(self._get_param("TemplateBody") or "")
        if len(body.encode()) > INLINE:
            raise ValidationError(
                "1 validation error detected: Value at 'templateBody' failed to satisfy constraint: "
                f"Member must have length less than or equal to {INLINE}"
            )
        return body

    def _object(self, url: str) -> str:
        """`https://BUCKET.s3.REGION.amazonaws.com/KEY`."""
        told = urlsplit(url)
        try:
            found = s3_backends[self.current_account]["aws"].get_object(told.netloc.partition(".s3")[0], told.path[1:])
        except S3ClientError:
            found = None
        if found is None:
            raise ValidationError(f"S3 error: Access Denied: {url}")
        return str(found.value.decode())

    def _stack(self, *, deleted: bool = True) -> Stack:
        """By name, or by id; a deleted one is known by its id alone."""
        wanted = self._get_param("StackName")
        found = self.cloud.stacks.all.get(wanted) if deleted else None
        there = self.cloud.stacks.there(self.current_account, self.region)
        found = found or next((each for each in there if wanted in (each.name, each.id)), None)
        if found is None or not self.cloud.visible(found.id):
            raise ValidationError(f"Stack with id {wanted} does not exist")
        return found

    def describe_stacks(self) -> ActionResult:
        if self._get_param("StackName"):
            return ActionResult({"Stacks": [self._stack().told()]})
        there = list(self.cloud.stacks.there(self.current_account, self.region))
        return self._page("Stacks", [each.told() for each in there if self.cloud.visible(each.id)])

    def describe_stack_events(self) -> ActionResult:
        return self._page("StackEvents", self._stack().events[::-1])

    def _page(self, key: str, found: list[dict[str, Any]]) -> ActionResult:
        start = int(self._get_param("NextToken") or 0)
        end = start + min(PAGE, self.cloud.page)
        return ActionResult({key: found[start:end], **({"NextToken": str(end)} if end < len(found) else {})})

    def describe_stack_resources(self) -> ActionResult:
        stack = self._stack()
        found = [
            {
                "StackName": stack.name,
                "StackId": stack.id,
                "LogicalResourceId": part.logical,
                "PhysicalResourceId": part.physical,
                "ResourceType": part.kind,
                "Timestamp": stack.made_at,
                "ResourceStatus": part.status,
                **({"ResourceStatusReason": part.reason} if part.reason else {}),
            }
            for part in stack.parts.values()
            if part.status
        ]
        return ActionResult({"StackResources": found})

    def delete_stack(self) -> ActionResult:
        try:
            self._stack(deleted=False).delete()
        except ValidationError as error:
            if "does not exist" not in str(error.message):
                raise
        return EmptyResult()

    def update_termination_protection(self) -> ActionResult:
        stack = self._stack(deleted=False)
        stack.protected = self._get_bool_param("EnableTerminationProtection", False)
        return ActionResult({"StackId": stack.id})

    def validate_template(self) -> ActionResult:
        template = template_of(self._body())
        told = [
            {
                "ParameterKey": key,
                "DefaultValue": None if each.get("Default") is None else str(each["Default"]),
                "NoEcho": bool(each.get("NoEcho")),
                "Description": each.get("Description"),
            }
            for key, each in (template.get("Parameters") or {}).items()
        ]
        needed = capabilities_of(template)
        return ActionResult(
            {
                "Parameters": [{k: v for k, v in each.items() if v is not None} for each in told],
                "Description": template.get("Description", ""),
                **({"Capabilities": needed, "CapabilitiesReason": "it makes identities"} if needed else {}),
            }
        )
