"""Servers of EC2 that are made as stacks of CloudFormation, of a template that the user has written."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, ClassVar

from providers import Caps, Finding, Key
from providers.clients.cloudformation import NAME as STACK_NAME
from providers.clients.cloudformation import Stack, stacks_of
from providers.compute import Given, Image, Server, ServerState, Size, Subnet
from providers.compute.aws import MADE_OF, MANAGED, NAME, AwsCompute, Raw, compare
from providers.compute.aws_rights import stack_statements
from providers.compute.aws_spec import GIB, carried, disk_of, memory_of, owner_of, tag_list, tags_of
from providers.compute.template import Template, read_template
from providers.errors import Busy, Conflict, GuardRefused, NotFound, NotYetVisible, ProviderError, Refused, Throttled
from providers.rights import Rights

FIXED = "parameters."  # how a setting begins that fills in a parameter
STACK_TAG = "aws:cloudformation:stack-name"  # AWS' own, on what a stack has made: nobody else can write it
GOING = "DELETE_IN_PROGRESS"


class CloudFormationCompute(AwsCompute):
    """`settings`: those of `providers.compute.aws` but `user_data`; `template` (an absolute path on the workers, or
    s3://BUCKET/KEY); `parameters.NAME` (a parameter of the template with the same value for all); `capabilities` (with
    commas between) and `stack_role` (the ARN of a role that CloudFormation takes on) as CreateStack takes them. See
    `providers.compute.Compute` for the contract, and docs/aws.md for what CloudFormation makes of it.

    A server that we make is a stack, and the stack's name, which is the key's, is its id. A's id is that of an
    instance, or the name of a stack that we made earlier.
    """

    OURS: ClassVar[frozenset[str]] = frozenset({"leave_tags", "template", "capabilities", "stack_role"})

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._fixed = {
            name.removeprefix(FIXED): str(value) for name, value in settings.items() if name.startswith(FIXED)
        }
        super().__init__({name: value for name, value in settings.items() if not name.startswith(FIXED)})
        self._where = str(settings.get("template", ""))
        if not self._where:
            raise Refused("provider settings: cloudformation needs a template: write settings: {template: /a/path}")
        words = str(settings.get("capabilities", "")).split(",")
        self._capabilities = [each.strip() for each in words if each.strip()]
        self._role = str(settings.get("stack_role", ""))
        self._stacks = stacks_of(self._aws)

    @property
    def caps(self) -> Caps:
        own = ("B's volumes", "B's first boot", "B has A's tags")
        notes = [note for note in super().caps.notes if not note.startswith(own)]
        return Caps(
            batch=super().caps.batch,
            notes=(
                *notes,
                "B is what the template says: of A it has the image, the tags, and what the template asks for",
                "B and all that its stack has made are deleted together; changing the stack by hand may replace B",
                "a type for which there is no room makes the stack fail: no fallback size is tried",
            ),
        )

    def recipe(self) -> str:
        return f"{self._where} {self._template().digest}"

    # -- looks --------------------------------------------------------------------------------------------------------

    def servers(self, ids: Sequence[str], *, protection: bool = False) -> Mapping[str, Server]:
        names = [id for id in dict.fromkeys(ids) if STACK_NAME.fullmatch(id)]
        found = dict(super().servers([id for id in ids if id not in names], protection=protection))
        for start in range(0, len(names), self.caps.batch):
            found |= self._in_stacks(names[start : start + self.caps.batch])
        for name in names if protection else ():
            if name in found and (instance := self._stacks.known(name)):
                found[name] = replace(self._with_protection(replace(found[name], id=instance)), id=name)
        return found

    def inventory(self, tags: Mapping[str, str]) -> Sequence[Server | Image]:
        found: dict[str, Server | Image] = {}
        for thing in super().inventory(tags):
            name = _stack_of(thing.tags) if isinstance(thing, Server) else ""
            found[name or thing.id] = replace(thing, id=name or thing.id)
        stacks = {
            each.name: each
            for each in self._stacks.all()
            if STACK_NAME.fullmatch(each.name) and each.name not in found and _has(each.tags, tags)
        }
        for server in self._in_stacks(list(stacks), stacks).values():  # its instance may say otherwise by now
            if server.state != "terminated" and _has(server.tags, tags):
                found[server.id] = server
        return list(found.values())

    def obstacles(self, ids: Sequence[str], *, sizes: Sequence[Size]) -> Mapping[str, Sequence[str]]:
        instances = self._all_inside(ids)
        seen = super().obstacles([instances.get(id, id) for id in ids], sizes=sizes)
        found = {id: list(seen[instances.get(id, id)]) for id in ids if instances.get(id, id) in seen}
        try:
            faults = self._template().faults(list(self._fixed))
        except (Refused, NotFound) as error:
            faults = [str(error)]
        for instance in self._instances("instance-id", [id for id in ids if id not in instances]):
            if name := _stack_of(tags_of(instance)):
                id = instance["InstanceId"]
                found[id] = [f"{id} is in our stack {name}: write that as its id", *found.get(id, ())]
        if faults:  # it is one for all: the first of them is told
            for id in list(ids)[:1]:
                found[id] = [*faults, *found.get(id, ())]
        return found

    def _owner(self, instance: Raw) -> str:
        name = _stack_of(tags_of(instance))
        return "" if name else owner_of(instance)

    def examine(
        self, ids: Sequence[str], *, sizes: Sequence[Size], at_once: int, among: Sequence[str] = ()
    ) -> Sequence[Finding]:
        instances = self._all_inside(ids)
        return [
            *super().examine([instances.get(id, id) for id in ids], sizes=sizes, at_once=at_once, among=among),
            self._examined(),
        ]

    def rights(self, ids: Sequence[str], *, fleet: str) -> Sequence[Rights]:
        inside: Mapping[str, str] = {}
        with suppress(ProviderError):  # who may not look yet fills in by hand
            inside = self._all_inside(ids)
        (mine, *others) = super().rights([inside.get(id, id) for id in ids], fleet=fleet)
        more = stack_statements(self._aws.place, stack_role=self._role, template=self._where)
        return [replace(mine, statements=[*mine.statements, *more]), *others]

    def subnets(self, like: str, /, *, among: Sequence[str]) -> Sequence[Subnet]:
        """In the zone of the old one alone, since that is what the template is told."""
        found = super().subnets(self._inside(like), among=among)
        return [each for each in found if each.zone == found[0].zone]

    def _examined(self) -> Finding:
        name = f"template {self._where}"
        try:
            template = self._template()
            told = self._aws.read("cloudformation", "validate_template", **template.source)
            faults = template.faults(list(self._fixed))
        except ProviderError as error:
            return Finding(name=name, ok=False, detail=str(error), fix="mend it, or name another one: `template`")
        if missing := sorted(set(told.get("Capabilities", ())) - set(self._capabilities)):
            return Finding(
                name=name,
                ok=False,
                detail=f"whoever makes stacks of it has to say {', '.join(missing)}: {told.get('CapabilitiesReason')}",
                fix=f'if you want that: provider: {{settings: {{capabilities: "{",".join(missing)}"}}}}',
            )
        if faults:
            return Finding(name=name, ok=False, detail="; ".join(faults), fix="docs/aws.md says what it needs to have")
        asked = ", ".join(template.parameters)
        return Finding(name=name, ok=True, detail=f"valid; it asks for {asked}; SHA-256 {template.digest[:16]}")

    # -- making -------------------------------------------------------------------------------------------------------

    def ensure_image(self, key: Key, *, source: str) -> Image:
        return super().ensure_image(key, source=self._inside(source))

    def ensure_server(self, key: Key, *, image: str, like: str, size: Size) -> Server:
        template = self._template()
        made_of = f"{image} {like} {size.type} {size.disk} {template.digest[:16]}"
        if (made := self._stacks.named([key.name]).get(key.name)) is not None:
            return self._adopted_stack(made, made_of)
        if (made := self._made_meanwhile(key.name)) is not None:
            return self._adopted_stack(made, made_of)
        self._aws.right_account()
        asked = self._asked(template, key, image=image, like=self._inside(like), size=size, made_of=made_of)
        try:
            self._aws.write("cloudformation", "create_stack", **asked)
        except Conflict as error:  # somebody else's call for the same key was first, or it is long over
            made = self._stacks.named([key.name]).get(key.name)
            if made is not None:
                return self._adopted_stack(made, made_of)
            if error.code == "TokenAlreadyExistsException":
                raise Refused(f"the stack {key.name}, which this key made, is gone", code=error.code) from None
            raise NotYetVisible(f"the stack {key.name} exists and does not show yet", code=error.code) from None
        self._unseen[key.name] = time.monotonic()
        return Server(
            id=key.name,
            name=key.name,
            state="pending",
            address="",
            size=size,
            tags={each["Key"]: each["Value"] for each in asked["Tags"]},
            launched=time.time(),
            reason="its stack is being made",
        )

    def _asked(
        self, template: Template, key: Key, *, image: str, like: str, size: Size, made_of: str
    ) -> dict[str, Any]:
        """The CreateStack call. A stack that fails is rolled back and stays, with its name taken and its reason told,
        until it is deleted: OnFailure DELETE would free the name for a call that comes late."""
        if faults := template.faults(list(self._fixed)):
            raise Refused("; ".join(faults))
        old, found, _, _ = self._fitting(image=image, like=like, size=size)
        root = size.disk // GIB - disk_of(found) // GIB + _root(found)
        own = {
            "ImageId": image,
            "InstanceType": size.type,
            "SubnetId": size.subnet or old.get("SubnetId", ""),
            "SecurityGroupIds": ",".join(group["GroupId"] for group in old.get("SecurityGroups") or ()),
            "AvailabilityZone": old["Placement"]["AvailabilityZone"],
            "DiskSize": str(root),
        }
        values = {name: value for name, value in {**own, **self._fixed}.items() if name in template.parameters}
        tags = {**carried(tags_of(old), self._leave), **key.tags, MANAGED: "1", NAME: key.name, MADE_OF: made_of}
        return {
            "StackName": key.name,
            "Parameters": [{"ParameterKey": name, "ParameterValue": value} for name, value in values.items()],
            "Tags": tag_list(tags),
            "OnFailure": "ROLLBACK",
            "ClientRequestToken": key.token,
            **template.source,
            **({"Capabilities": self._capabilities} if self._capabilities else {}),
            **({"RoleARN": self._role} if self._role else {}),
        }

    def _adopted_stack(self, stack: Stack, made_of: str) -> Server:
        was = stack.tags.get(MADE_OF)
        if stack.tags.get(MANAGED) != "1" or was != made_of:
            raise Conflict(f"the stack {stack.name} has this key's name and was made of {was!r}, not of {made_of!r}")
        server = self._in_stacks([stack.name], {stack.name: stack}).get(stack.name)
        if server is None or server.state == "terminated":
            raise Refused(f"the stack {stack.name}, which this key made, is deleted")
        return server

    def _made_meanwhile(self, name: str) -> Stack | None:
        """The stack that did not show a moment ago; None if there never was one. `Refused` if it is gone and an
        instance of it tells so, `NotYetVisible` while that may be in a stack which does not show yet."""
        self._not_too_new(name)
        left = list(self._instances(f"tag:{STACK_TAG}", [name]))
        if not left:
            return None
        if (made := self._stacks.named([name]).get(name)) is not None:
            return made
        for instance in left:
            if instance["State"]["Name"] in ("pending", "running"):
                raise NotYetVisible(f"{instance['InstanceId']} is of the stack {name}, which does not show")
        raise Refused(f"{left[0]['InstanceId']}, which the stack of this key made, outlived it or is terminated")

    # -- changing -----------------------------------------------------------------------------------------------------

    def stop(self, id: str, *, given: Given | None = None) -> None:
        super().stop(self._inside(id), given=given)

    def start(self, id: str, *, given: Given | None = None) -> None:
        super().start(self._inside(id), given=given)

    def tag(self, id: str, tags: Mapping[str, str | None], *, given: Given | None = None) -> None:
        super().tag(self._inside(id), tags, given=given)

    def protect(self, id: str, on: bool, *, given: Given | None = None) -> None:
        instance = self._inside(id)
        if instance == id:
            super().protect(id, on, given=given)
            return
        compare(self._instance(instance), given)
        # While its stack can be deleted, what else is in it could be gone before the instance refuses to go.
        if not on:
            super().protect(instance, on, given=given)
        self._aws.write("cloudformation", "update_termination_protection", StackName=id, EnableTerminationProtection=on)
        if on:
            super().protect(instance, on, given=given)

    def terminate(self, id: str, *, given: Given | None = None) -> None:
        """Of what we made the stack is deleted, never the instance alone. Where that failed before it is asked for
        again, and `Busy` says what stood in its way and is left."""
        if not STACK_NAME.fullmatch(id):
            seen = super().servers([id]).get(id)
            if seen is not None and seen.state != "terminated" and (name := _stack_of(seen.tags)):
                raise GuardRefused(f"{id} was made by our stack {name}, and ends with it: call it by that name")
            super().terminate(id, given=given)
            return
        stack = self._stacks.named([id]).get(id)
        instance = self._instance_in(id, stack)
        if stack is None:
            self._not_too_new(id)
            if instance is not None:  # it outlived its stack
                super().terminate(instance["InstanceId"], given=given)
            return
        if stack.status == GOING:
            return
        if stack.tags.get(MANAGED) != "1":
            raise GuardRefused(f"the stack {id} does not carry {MANAGED}=1")
        if instance is not None:
            compare(instance, given)
            (server,) = self._servers([instance]).values()
            if self._with_protection(server).protected:
                raise GuardRefused(f"{server.id}, of the stack {id}, is protected")
        told = self._left(stack) if stack.status == "DELETE_FAILED" else ""
        self._aws.write("cloudformation", "delete_stack", StackName=stack.id)
        self._stacks.forget(id)
        if told:
            raise Busy(f"{told}. Its deletion was asked for again")

    # -- reading stacks -----------------------------------------------------------------------------------------------

    def _template(self) -> Template:
        return read_template(self._aws, self._where)

    def _all_inside(self, ids: Iterable[str]) -> Mapping[str, str]:
        return self._stacks.instances([id for id in ids if STACK_NAME.fullmatch(id)])

    def _inside(self, id: str) -> str:
        """The id of the instance. `NotFound` where a stack has none, `NotYetVisible` while it has none yet."""
        if not STACK_NAME.fullmatch(id):
            return id
        if found := self._all_inside([id]).get(id):
            return found
        stack = self._stacks.named([id]).get(id)
        if stack is None:
            self._not_too_new(id)
            left = self._instance_in(id, None)
            if left is None:
                raise NotFound(f"there is no stack {id} in {self._aws.lane}")
            return str(left["InstanceId"])
        if stack.status.startswith(("CREATE_IN", "REVIEW_IN")):
            raise NotYetVisible(f"the stack {id} is {stack.status}: it has no server yet")
        raise NotFound(f"the stack {id} in {self._aws.lane} is {stack.status}: it has no server")

    def _instance_in(self, name: str, stack: Stack | None) -> Raw | None:
        """Its instance, if that is not terminated; found by AWS' own mark where the stack does not tell it."""
        known = stack.instance if stack is not None else ""
        by = ("instance-id", [known]) if known else (f"tag:{STACK_TAG}", [name])
        found = (each for each in self._instances(*by) if each["State"]["Name"] not in ("shutting-down", "terminated"))
        return next(found, None)

    def _in_stacks(self, names: Sequence[str], stacks: Mapping[str, Stack] | None = None) -> dict[str, Server]:
        """The servers of these stacks: what EC2 says of each that has an instance, what CloudFormation says of the
        others. A stack whose instance is remembered is not asked for again while that is there."""
        known = {} if stacks is not None else {name: id for name in names if (id := self._stacks.known(name))}
        told = dict(stacks) if stacks is not None else self._stacks.named([name for name in names if name not in known])
        seen = self._alive([*known.values(), *(stack.instance for stack in told.values())])
        found = {name: replace(seen[id], id=name, name=name) for name, id in known.items() if id in seen}
        if doubtful := [name for name in known if name not in found]:
            more = self._stacks.named(doubtful)
            seen = {**seen, **self._alive([stack.instance for stack in more.values()])}
            told |= more
        for name, stack in told.items():
            self._unseen.pop(name, None)
            found[name] = self._server_of(stack, seen.get(stack.instance))
        if lost := [name for name in names if name not in found]:
            for server in self._ec2_servers(f"tag:{STACK_TAG}", lost).values():
                name = server.tags[STACK_TAG]
                if name not in found or found[name].state == "terminated":  # one that outlived its stack comes first
                    found[name] = replace(server, id=name, name=name)
        return found

    def _alive(self, ids: Sequence[str]) -> Mapping[str, Server]:
        servers = self._ec2_servers("instance-id", [id for id in ids if id])
        return {id: server for id, server in servers.items() if server.state != "terminated"}

    def _ec2_servers(self, filter: str, values: Sequence[str]) -> Mapping[str, Server]:
        return self._servers(self._instances(filter, values)) if values else {}

    def _server_of(self, stack: Stack, instance: Server | None) -> Server:
        """`instance`: its own, if that is not terminated."""
        if instance is not None and stack.status != GOING:
            self._stacks.learn([stack])
            server = replace(instance, id=stack.name, name=stack.name)
            failed = stack.status == "DELETE_FAILED"
            return replace(server, state="failed", reason=self._left(stack)) if failed else server
        state: ServerState = "failed"
        if stack.status == GOING:
            state, reason = "terminated", "its stack is being deleted"
        elif stack.status.startswith(("CREATE_IN", "REVIEW_IN")):
            state, reason = "pending", "its stack is being made"
        elif stack.status == "DELETE_FAILED":
            reason = self._left(stack)
        elif stack.instance:
            reason = f"{stack.instance} is terminated, and its stack {stack.name} is left"
        elif stack.complete:
            reason = f"the stack {stack.name} tells no InstanceId among its outputs"
        else:
            reason = f"the stack {stack.name} failed ({stack.status}): {self._stacks.why(stack)}"
        kind = stack.parameters.get("InstanceType", "")
        made_of = stack.tags.get(MADE_OF, "").split()
        return Server(
            id=stack.name,
            name=stack.name,
            state=state,
            address="",
            size=Size(memory=self._memory(kind), disk=int(made_of[3]) if len(made_of) > 3 else 0, type=kind),
            tags=stack.tags,
            launched=stack.made,
            reason=reason,
        )

    def _memory(self, kind: str) -> int:
        try:
            return memory_of(self._type(kind)) if kind else 0
        except Throttled:
            raise
        except ProviderError:  # no such type: the reason why it failed, perhaps
            return 0

    def _left(self, stack: Stack) -> str:
        things = ", ".join(self._stacks.left(stack)) or "nothing that it tells"
        return f"the stack {stack.name} could not be deleted ({self._stacks.why(stack)}); left: {things}"


def _stack_of(tags: Mapping[str, str]) -> str:
    """The name of the stack of ours that made it; empty if none did."""
    name = tags.get(STACK_TAG, "")
    return name if STACK_NAME.fullmatch(name) and tags.get(NAME) == name else ""


def _has(tags: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    return all(tags.get(name) == value for name, value in wanted.items())


def _root(image: Raw) -> int:
    """GiB of the root volume of an image."""
    return next(
        (
            int(each["Ebs"]["VolumeSize"])
            for each in image.get("BlockDeviceMappings") or ()
            if each["DeviceName"] == image.get("RootDeviceName") and "Ebs" in each
        ),
        0,
    )
