"""Stacks of CloudFormation that hold one server each: read many at once, and found by the names that we give."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from providers.clients.aws import Aws
from providers.errors import NotFound

NAME = re.compile(r"co-[0-9a-f]{40}")  # as a `Key` gives it
INSTANCE_ID, PRIVATE_IP = "InstanceId", "PrivateIp"  # what a stack has to tell of its server
FEW = 2  # so many stacks are asked for one by one; for more of them all are read
COMPLETE = re.compile(r"CREATE_COMPLETE|UPDATE_.*|IMPORT_.*")  # it has been made, whoever has changed it since


@dataclass(frozen=True, kw_only=True)
class Stack:
    """A stack as DescribeStacks tells it. `made` is epoch seconds. `parameters` that are secret read ****."""

    name: str
    id: str
    status: str
    reason: str
    made: float
    tags: Mapping[str, str]
    parameters: Mapping[str, str]
    outputs: Mapping[str, str]

    @property
    def complete(self) -> bool:
        return COMPLETE.fullmatch(self.status) is not None

    @property
    def instance(self) -> str:
        """The id of its instance: told when it has been made, and whatever happens to it later."""
        return self.outputs.get(INSTANCE_ID, "")


class Stacks:
    """Those of one account and region. Which instance is in which stack is remembered, until `forget`."""

    def __init__(self, aws: Aws) -> None:
        self._aws = aws
        self._instances: dict[str, str] = {}
        self._whys: dict[tuple[str, str], str] = {}

    def named(self, names: Sequence[str]) -> dict[str, Stack]:
        """Those of the names that exist. A deleted one has its name no more."""
        wanted = set(names)
        if len(wanted) > FEW:
            return {each.name: each for each in self.all() if each.name in wanted}
        found = {}
        for name in wanted:
            try:
                (told,) = self._aws.read("cloudformation", "describe_stacks", StackName=name)["Stacks"]
            except NotFound:
                continue
            found[name] = _stack(told)
        return found

    def all(self) -> Iterator[Stack]:
        return map(_stack, self._aws.pages("cloudformation", "describe_stacks", "Stacks"))

    def instances(self, names: Sequence[str]) -> Mapping[str, str]:
        """The ids of the instances of those that are complete, as far as they tell one."""
        unknown = [name for name in names if name not in self._instances]
        self.learn(self.named(unknown).values() if unknown else ())
        return {name: self._instances[name] for name in names if name in self._instances}

    def known(self, name: str) -> str:
        """What is remembered of it; empty if nothing is."""
        return self._instances.get(name, "")

    def learn(self, stacks: Iterable[Stack]) -> None:
        self._instances |= {each.name: each.instance for each in stacks if each.instance}

    def forget(self, name: str) -> None:
        self._instances.pop(name, None)

    def why(self, stack: Stack) -> str:
        """The reason of what failed first in its last operation, with whose reason it is; the stack's own if it tells
        no other."""
        known = (stack.id, stack.status)
        if known not in self._whys:
            failed: list[Mapping[str, Any]] = []
            for event in self._aws.pages("cloudformation", "describe_stack_events", "StackEvents", StackName=stack.id):
                own = event["PhysicalResourceId"] == stack.id  # the newest come first
                if own and event.get("ResourceStatusReason") == "User Initiated":
                    break
                if not own and event["ResourceStatus"].endswith("_FAILED") and "ancelled" not in _reason(event):
                    failed.append(event)
            told = f"{failed[-1]['LogicalResourceId']}: {_reason(failed[-1])}" if failed else stack.reason
            self._whys[known] = told or f"it is {stack.status}"
        return self._whys[known]

    def left(self, stack: Stack) -> list[str]:
        """What of it is still there, one line each."""
        told = self._aws.read("cloudformation", "describe_stack_resources", StackName=stack.id)["StackResources"]
        return [
            f"{each['ResourceType']} {each.get('PhysicalResourceId') or each['LogicalResourceId']}"
            for each in told
            if each["ResourceStatus"] not in ("DELETE_COMPLETE", "DELETE_SKIPPED")
        ]


_all: dict[int, Stacks] = {}
_lock = threading.Lock()


def stacks_of(aws: Aws) -> Stacks:
    """One of each account and region in a process, shared by its threads and by all who look into stacks there."""
    with _lock:
        return _all.setdefault(id(aws), Stacks(aws))  # an `Aws` lives as long as its process


def _stack(told: Mapping[str, Any]) -> Stack:
    return Stack(
        name=told["StackName"],
        id=told["StackId"],
        status=told["StackStatus"],
        reason=told.get("StackStatusReason", ""),
        made=told["CreationTime"].timestamp() if "CreationTime" in told else time.time(),
        tags={each["Key"]: each["Value"] for each in told.get("Tags", ())},
        parameters={each["ParameterKey"]: each.get("ParameterValue", "") for each in told.get("Parameters", ())},
        outputs={each["OutputKey"]: each.get("OutputValue", "") for each in told.get("Outputs", ())},
    )


def _reason(event: Mapping[str, Any]) -> str:
    return str(event.get("ResourceStatusReason", "no reason given"))
