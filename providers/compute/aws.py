"""Servers and images of EC2: instances and AMIs of one account and region."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, ClassVar

from providers import Caps, Finding, Key
from providers.clients import iam
from providers.clients.aws import SETTINGS, aws
from providers.clients.rounds import Rounds, own
from providers.compute import Given, Image, ImageState, Server, ServerState, Size, Stopping, Subnet
from providers.compute.aws_rights import statements
from providers.compute.aws_room import addresses_left, processors_left, subnets_of
from providers.compute.aws_spec import (
    GIB,
    disk_of,
    launch_request,
    memory_of,
    misfits,
    owner_of,
    tag_list,
    tags_of,
    too_small,
    unlike,
)
from providers.errors import (
    Busy,
    Conflict,
    GuardRefused,
    NoCapacity,
    NotFound,
    NotYetVisible,
    ProviderError,
    QuotaExceeded,
    Refused,
    Throttled,
    Transient,
    Unauthorized,
)
from providers.rights import Rights

BATCH = 100  # ids that one DescribeInstanceStatus takes, and half of what a filter does
MANAGED, DISPOSABLE = "changeover:managed", "changeover:disposable"
NAME, MADE_OF = "changeover:name", "changeover:made-of"
CHECKED = 3600.0  # seconds after a start in which the status checks decide whether an instance runs
GRACE = 300.0  # seconds after a start in which a failed check is not believed
LAG = 120.0  # seconds in which a thing that we made may not show yet
FRESH = 300.0  # seconds for which the size of a volume is remembered
MOMENT = 300.0  # seconds for which an instance is believed to be as it was, where it is to be imaged or cloned
MANY = 1000  # images, and instances, that are remembered at once
_INSTANCE = re.compile(r"i-[0-9a-f]{8,17}")
_IMAGE = re.compile(r"ami-[0-9a-f]{8,17}")
_STATES: Mapping[str, ServerState] = {
    "pending": "pending",
    "running": "running",
    "stopping": "stopping",
    "stopped": "stopped",
    "shutting-down": "terminated",  # nothing brings it back
    "terminated": "terminated",
}
_IMAGE_STATES: Mapping[str, ImageState] = {"pending": "pending", "available": "available"}
Raw = Mapping[str, Any]


class AwsCompute:
    """`settings`: those of `providers.clients.aws`, `leave_tags` (patterns of tags of A, with commas between, that B
    does not have), `user_data` (`keep` or `empty`) and `volume_initialization_rate` (MiB/s). See
    `providers.compute.Compute` for the contract, and docs/aws.md for what EC2 makes of it.

    EC2 cannot compare tags by itself: `given` is compared by a look right before the call, and an IAM condition on the
    same tags holds the moment between. Of protection it tells in calls of their own, two for each server.
    """

    # Settings besides those of the client.
    OURS: ClassVar[frozenset[str]] = frozenset({"leave_tags", "user_data", "volume_initialization_rate"})

    def __init__(self, settings: Mapping[str, Any]) -> None:
        known = SETTINGS | self.OURS
        if unknown := sorted(set(settings) - known):
            raise Refused(f"provider settings: unknown {', '.join(unknown)}; known: {', '.join(sorted(known))}")
        self._user_data = str(settings.get("user_data", "keep"))
        if self._user_data not in ("keep", "empty"):
            raise Refused(f"provider settings: user_data is keep or empty, not {self._user_data!r}")
        self._rate = _rate(settings.get("volume_initialization_rate"))
        self._leave = tuple(each.strip() for each in str(settings.get("leave_tags", "")).split(",") if each.strip())
        self._aws = aws({name: value for name, value in settings.items() if name in SETTINGS})
        self._types: dict[str, Raw] = {}
        self._zones: dict[str, tuple[str, ...]] = {}  # type -> the zones that offer it
        self._volumes: dict[str, tuple[float, int]] = {}  # volume -> until when its size is believed, bytes
        self._available: dict[str, Raw] = {}  # images that are whole, and will not change any more
        # Of an instance that is to be replaced, until when it is believed: its description, template and volumes.
        self._known: dict[tuple[str, str], tuple[float, Any]] = {}
        self._unseen: dict[str, float] = {}  # what this process made and no look has shown yet, and when
        # What threads want to know of one thing each at the same moment is one call for all of them.
        self._one_by: Mapping[str, Rounds[str, Raw | None]] = {
            "instance-id": Rounds(lambda ids: _by("InstanceId", ids, self._described("instance-id", sorted(ids)))),
            "client-token": Rounds(
                lambda keys: _by("ClientToken", keys, self._described("client-token", sorted(keys)))
            ),
            "image-id": Rounds(lambda ids: _by("ImageId", ids, self._registered("image-id", sorted(ids)))),
            "name": Rounds(lambda names: _by("Name", names, self._registered("name", sorted(names)))),
        }
        self._volumes_of = Rounds(self._attached_volumes)
        self._begun_of = Rounds(self._begun)
        self._stops: Rounds[Stopping, ProviderError | None] = Rounds(self._stop)

    @property
    def caps(self) -> Caps:
        return Caps(
            batch=BATCH,
            notes=(
                "an image is taken without a reboot: it is crash-consistent, like a disk after a power cut",
                "B has another private address than A, and another public one where A's is not an elastic one",
                "B's first boot runs cloud-init and user data again, unless user_data is empty",
                "B has A's tags but those of AWS, of controllers that choose servers by tags, and leave_tags",
                "B's volumes are deleted with it and it is not protected against termination, whatever A's are",
                "while A and B both exist, both are paid for; A's volumes are until it is terminated",
                "a stopped A may find no room to start in again, and loses a public address that is not elastic",
            ),
        )

    # -- looks --------------------------------------------------------------------------------------------------------

    def servers(self, ids: Sequence[str], *, protection: bool = False) -> Mapping[str, Server]:
        found: dict[str, Server] = {}
        wanted = [id for id in dict.fromkeys(ids) if _INSTANCE.fullmatch(id)]
        for start in range(0, len(wanted), BATCH):
            found |= self._servers(self._instances("instance-id", wanted[start : start + BATCH]))
        if protection:
            found = {
                id: self._with_protection(server) if server.state != "terminated" else server
                for id, server in found.items()
            }
        return found

    def images(self, ids: Sequence[str]) -> Mapping[str, Image]:
        found: dict[str, Image] = {}
        wanted = [id for id in dict.fromkeys(ids) if _IMAGE.fullmatch(id)]
        for start in range(0, len(wanted), BATCH):
            some = wanted[start : start + BATCH]
            found |= {each["ImageId"]: _image(each) for each in self._registered("image-id", some)}
        return found

    def inventory(self, tags: Mapping[str, str]) -> Sequence[Server | Image]:
        filters = [{"Name": f"tag:{name}", "Values": [_literal(value)]} for name, value in tags.items()]
        alive = [state for state, ours in _STATES.items() if ours != "terminated"]
        up = [*filters, {"Name": "instance-state-name", "Values": alive}]
        pages = self._aws.pages("ec2", "describe_instances", "Reservations", Filters=up, MaxResults=1000)
        instances = [each for reservation in pages for each in reservation["Instances"]]
        images = self._aws.pages("ec2", "describe_images", "Images", Owners=["self"], Filters=filters)
        return [*self._servers(instances, checks=False).values(), *map(_image, images)]

    def obstacles(self, ids: Sequence[str], *, sizes: Sequence[Size]) -> Mapping[str, Sequence[str]]:
        self._aws.right_account()
        found: dict[str, list[str]] = {}
        wanted = [id for id in dict.fromkeys(ids) if _INSTANCE.fullmatch(id)]
        for start in range(0, len(wanted), BATCH):
            missing: list[str] | None = None
            for instance in self._instances("instance-id", wanted[start : start + BATCH]):
                if missing is None:  # one of them speaks for the others: a policy is for a fleet
                    missing = self._forbidden(instance, sizes)
                if problems := [*self._obstacles(instance, sizes), *missing]:
                    found[instance["InstanceId"]] = problems
        return found

    def subnets(self, like: str, /, *, among: Sequence[str]) -> Sequence[Subnet]:
        return subnets_of(self._aws, self._instance(like), among)

    def examine(
        self, ids: Sequence[str], *, sizes: Sequence[Size], at_once: int, among: Sequence[str] = ()
    ) -> Sequence[Finding]:
        who = f"aws: {self._aws.lane}"
        wanted = [id for id in dict.fromkeys(ids) if _INSTANCE.fullmatch(id)]
        try:
            self._aws.right_account()
            there = Finding(name=who, ok=True, detail=f"account {self._aws.identity}, as {self._aws.caller}")
            instances = [
                instance
                for start in range(0, len(wanted), BATCH)
                for instance in self._instances("instance-id", wanted[start : start + BATCH])
                if instance["State"]["Name"] in ("pending", "running")
            ]
            kind = self._type(sizes[0].type)["InstanceType"]
            room = processors_left(self._aws, instances, kind, at_once, self._kinds)
        except ProviderError as error:
            fix = "`account`, `role`, `profile`: whose credentials the workers have, and what they may do"
            return [Finding(name=who, ok=False, detail=str(error), fix=fix if isinstance(error, Unauthorized) else "")]
        return [there, room, *addresses_left(self._aws, instances, among)]

    def rights(self, ids: Sequence[str], *, fleet: str) -> Sequence[Rights]:
        place, roles, keys = self._aws.place, None, set[str]()
        with suppress(ProviderError):  # who may not look yet fills in by hand
            roles, keys = self._lent([id for id in dict.fromkeys(ids) if _INSTANCE.fullmatch(id)])
        return iam.rights(place, statements(place, fleet=fleet, roles=roles, keys=keys))

    def _lent(self, ids: Sequence[str]) -> tuple[set[str] | None, set[str]]:
        """What these servers have that belongs to somebody else: roles (None if that cannot be seen), and keys."""
        profiles, keys = set[str](), set[str]()
        for start in range(0, len(ids), BATCH):
            some = ids[start : start + BATCH]
            for instance in self._instances("instance-id", some):
                profiles |= {str((instance.get("IamInstanceProfile") or {}).get("Arn", ""))} - {""}
            volumes = self._aws.pages("ec2", "describe_volumes", "Volumes", Filters=[_attached(some)])
            keys |= {str(each.get("KmsKeyId") or "") for each in volumes} - {""}
        try:
            roles = {
                str(role["Arn"])
                for profile in sorted(profiles)
                for role in self._profile(profile.rpartition("/")[2])["Roles"]
            }
        except ProviderError:
            return None, keys
        return roles, keys

    def _profile(self, name: str) -> Raw:
        return dict(self._aws.read("iam", "get_instance_profile", InstanceProfileName=name)["InstanceProfile"])

    def _forbidden(self, instance: Raw, sizes: Sequence[Size]) -> list[str]:
        """What these credentials may not do to it, by AWS' own dry runs. Not asked: TerminateInstances, which is
        to be forbidden for as long as a server is not given up."""
        id = instance["InstanceId"]
        mark = [{"Key": MANAGED, "Value": "1"}]
        launch = {
            "ImageId": instance["ImageId"],
            "InstanceType": sizes[0].type if sizes and sizes[0].type else instance["InstanceType"],
            "MinCount": 1,
            "MaxCount": 1,
            "TagSpecifications": [{"ResourceType": kind, "Tags": mark} for kind in ("instance", "volume")],
            **({"SubnetId": instance["SubnetId"]} if instance.get("SubnetId") else {}),
            **(
                {"IamInstanceProfile": {"Arn": profile["Arn"]}}
                if (profile := instance.get("IamInstanceProfile"))
                else {}
            ),
        }
        asked: Mapping[str, Mapping[str, Any]] = {
            "create_image": {"InstanceId": id, "Name": "changeover-may-it", "NoReboot": True},
            "run_instances": launch,
            "create_tags": {"Resources": [id], "Tags": [{"Key": "changeover:may-it", "Value": "1"}]},
            "delete_tags": {"Resources": [id], "Tags": [{"Key": "changeover:may-it"}]},
            "stop_instances": {"InstanceIds": [id]},
            "start_instances": {"InstanceIds": [id]},
            "modify_instance_attribute": {"InstanceId": id, "DisableApiStop": {"Value": False}},
        }
        missing = []
        for operation, params in asked.items():
            try:
                self._aws.dry_run("ec2", operation, **params)
            except Unauthorized as error:
                name = "".join(word.capitalize() for word in operation.split("_"))
                missing.append(
                    f"these credentials may not ec2:{name} ({error.code}): changeover doctor FILE --policy prints what "
                    f"they have to allow, for servers with the tag {iam.FLEET_TAG} ({_said(instance)})"
                )
            except (Refused, NotFound, Busy, GuardRefused):  # allowed, and not possible just now
                continue
        return missing

    def _owner(self, instance: Raw) -> str:
        """Why it is not ours to replace; empty where it is."""
        return owner_of(instance)

    def _obstacles(self, instance: Raw, sizes: Sequence[Size]) -> list[str]:
        problems = [each for each in (self._owner(instance), unlike(instance)) if each]
        # GetLaunchTemplateData takes one instance a call: what it alone tells is looked at when B is made.
        for size in sizes:
            try:
                kind = self._type(size.type)
                problems += [each for each in [too_small(kind, size)] if each]
                problems += misfits(instance, self._type(instance["InstanceType"]), kind, {})
                problems += self._offered(size.type, instance["Placement"]["AvailabilityZone"])
            except Refused as error:
                problems.append(str(error))
        return problems

    def recipe(self) -> str:
        return ""

    # -- making -------------------------------------------------------------------------------------------------------

    def ensure_image(self, key: Key, *, source: str) -> Image:
        # Asked for without a look whether it is there: EC2 itself refuses a second image of a name.
        self._aws.right_account()
        try:
            instance = self._of_ours(source)
        except (NotFound, Refused):
            if (made := self._image_named(key.name)) is not None:
                return self._ours(made, source)
            raise
        disk = sum(self._disks([instance]).values())
        tags = tag_list({**key.tags, MANAGED: "1", NAME: key.name, MADE_OF: source})
        specs = [{"ResourceType": kind, "Tags": tags} for kind in ("image", "snapshot")]
        try:
            answer = self._aws.write(
                "ec2", "create_image", InstanceId=source, Name=key.name, NoReboot=True, TagSpecifications=specs
            )
        except Refused as error:
            if error.code != "InvalidAMIName.Duplicate":
                raise
            made = self._image_named(key.name)  # somebody else's call for the same key was first
            if made is None:
                raise NotYetVisible(f"the image {key.name} exists and does not show yet", code=error.code) from None
            return self._ours(made, source)
        self._unseen[answer["ImageId"]] = time.monotonic()
        return Image(id=answer["ImageId"], name=key.name, state="pending", disk=disk, tags=tags_of({"Tags": tags}))

    def _of_ours(self, id: str) -> Raw:
        """One that may be replaced: nobody else would fight over it, and a clone can have all that it has."""
        instance: Raw = self._lately("instance", id, lambda: self._instance(id))
        if why := self._owner(instance) or unlike(instance):
            raise Refused(why)
        return instance

    def _lately(self, what: str, id: str, ask: Callable[[], Any]) -> Any:
        """What was read of it a moment ago is enough for another look at what it is like, or for another try."""
        until, known = self._known.get((what, id), (0.0, None))
        if until < time.monotonic():
            known = ask()
            if len(self._known) >= MANY:
                self._known.clear()
            self._known[what, id] = (time.monotonic() + MOMENT, known)
        return known

    def _image_named(self, name: str) -> Raw | None:
        return self._one("name", name)

    @staticmethod
    def _ours(found: Raw, source: str) -> Image:
        was = tags_of(found).get(MADE_OF) or found.get("SourceInstanceId")
        if was != source:
            raise Conflict(f"the image {found['ImageId']} has this key's name and was made of {was}, not of {source}")
        return replace(_image(found), adopted=True)

    def taken(self, image: str, /) -> bool:
        """A snapshot is of the moment at which it is begun, whatever it copies afterwards (EBS user guide, "How
        snapshots work"): when each of A's volumes has one, A may write again."""
        found = self._one("image-id", image) if _IMAGE.fullmatch(image) else None
        if found is None:
            self._not_too_new(image)
            raise NotFound(f"there is no image {image} in {self._aws.lane}")
        if found["State"] != "pending":
            return True
        source = tags_of(found).get(MADE_OF) or found.get("SourceInstanceId", "")
        volumes = {volume["VolumeId"] for volume in self._volumes_of([source])[source]}
        return bool(volumes) and volumes <= self._begun_of([image])[image]

    def ensure_server(self, key: Key, *, image: str, like: str, size: Size) -> Server:
        made_of = " ".join(filter(None, (image, like, size.type, str(size.disk), size.subnet)))
        # Asked for without a look whether it is there: EC2 itself answers with what this token has made.
        self._aws.right_account()
        try:
            request = self._request(key, image=image, like=like, size=size, made_of=made_of)
            answer = self._aws.write("ec2", "run_instances", ClientToken=key.token, **request)
        except (Conflict, NoCapacity, NotFound, QuotaExceeded, Refused) as error:
            # A, or the image, was changed between two tries of the same key: what the first try made is it.
            if (made := self._instance_of(key)) is not None:
                return self._adopted(made, made_of)
            if isinstance(error, Conflict):
                raise NotYetVisible("the server of this key exists and does not show yet", code=error.code) from None
            raise
        instance = answer["Instances"][0]
        self._unseen[instance["InstanceId"]] = time.monotonic()
        disk = sum(each["Ebs"]["VolumeSize"] for each in request["BlockDeviceMappings"]) * GIB
        return self._adopted(instance, made_of, disks={instance["InstanceId"]: disk})

    def _instance_of(self, key: Key) -> Raw | None:
        return self._one("client-token", key.token)

    def _adopted(self, instance: Raw, made_of: str, *, disks: Mapping[str, int] | None = None) -> Server:
        id = instance["InstanceId"]
        server = self._servers([instance], disks)[id]
        if server.tags.get(MADE_OF) != made_of:
            raise Conflict(f"{id} was made by the same key of {server.tags.get(MADE_OF)!r}, not of {made_of!r}")
        if server.state == "terminated":
            raise Refused(f"{id}, which this key made, is terminated: {server.reason or 'no reason given'}")
        return server

    def _request(self, key: Key, *, image: str, like: str, size: Size, made_of: str) -> dict[str, Any]:
        old, found, kind, template = self._fitting(image=image, like=like, size=size)
        volumes: Sequence[Raw] = self._lately("volumes", like, lambda: self._volumes_of([like])[like])
        return launch_request(
            template=template,
            image=found,
            volumes={at["Device"]: each for each in volumes for at in each["Attachments"]},
            kind=kind,
            size=size,
            tags={**key.tags, MANAGED: "1", NAME: key.name, MADE_OF: made_of},
            old_tags=tags_of(old),
            leave_tags=self._leave,
            user_data=self._user_data == "keep",
            rate=self._rate,
        )

    def _fitting(self, *, image: str, like: str, size: Size) -> tuple[Raw, Raw, Raw, Raw]:
        """A, the image, the new type and what GetLaunchTemplateData says of A. `Refused` if they do not go together."""
        old = self._of_ours(like)
        found = self._available.get(image) or (self._one("image-id", image) if _IMAGE.fullmatch(image) else None)
        if found is None:
            raise NotFound(f"there is no image {image} in {self._aws.lane}")
        if size.disk < disk_of(found):
            raise Refused(f"the image {image} needs {disk_of(found) // GIB} GiB of disk, the size has less")
        kind = self._type(size.type)
        template: Raw = self._lately("template", like, lambda: self._read_template(like))
        problems = [
            *(each for each in [too_small(kind, size)] if each),
            *misfits(old, self._type(old["InstanceType"]), kind, template),
        ]
        if problems:
            raise Refused(f"{like} cannot become a {size.type}: {'; '.join(problems)}")
        return old, found, kind, template

    def _read_template(self, id: str) -> Raw:
        """One instance a call."""
        told = self._aws.read("ec2", "get_launch_template_data", InstanceId=id)
        return dict(told["LaunchTemplateData"])

    # -- changing -----------------------------------------------------------------------------------------------------

    def stop(self, id: str, *, given: Given | None = None) -> None:
        own(self._stops, Stopping.of(id, given))

    def _stop(self, asked: Collection[Stopping]) -> dict[Stopping, ProviderError | None]:
        """What threads want to be stopped at the same moment is one look and one call; what became of each."""
        said: dict[Stopping, ProviderError | None] = dict.fromkeys(asked)
        wanted = sorted({each.id for each in asked if _INSTANCE.fullmatch(each.id)})
        found = {instance["InstanceId"]: instance for instance in self._described("instance-id", wanted)}
        due: list[Stopping] = []
        for each in asked:
            try:
                instance = self._there(each.id, found.get(each.id))
                if _STATES[instance["State"]["Name"]] not in ("stopping", "stopped"):
                    compare(instance, dict(each.given))
                    due.append(each)
            except ProviderError as error:
                said[each] = error
        try:
            if due:
                self._aws.write("ec2", "stop_instances", InstanceIds=sorted({each.id for each in due}))
        except ProviderError as error:
            if len(due) == 1 or isinstance(error, (Throttled, Transient)):
                return {**said, **dict.fromkeys(due, error)}
            for each in due:  # one that may not be stopped spoils the call for all
                said |= self._stop([each])
        return said

    def start(self, id: str, *, given: Given | None = None) -> None:
        instance = self._instance(id)
        if _STATES[instance["State"]["Name"]] in ("pending", "running"):
            return
        compare(instance, given)
        self._aws.write("ec2", "start_instances", InstanceIds=[id])

    def terminate(self, id: str, *, given: Given | None = None) -> None:
        instance = next(iter(self._instances("instance-id", [id])), None) if _INSTANCE.fullmatch(id) else None
        if instance is None:
            self._not_too_new(id)
            return
        if _STATES[instance["State"]["Name"]] == "terminated":
            return
        tags = tags_of(instance)
        if "1" not in (tags.get(MANAGED), tags.get(DISPOSABLE)):
            raise GuardRefused(f"{id} carries neither {MANAGED}=1 nor {DISPOSABLE}=1")
        compare(instance, given)
        try:
            self._aws.write("ec2", "terminate_instances", InstanceIds=[id])
        except NotFound:
            self._not_too_new(id)

    def delete_image(self, id: str) -> None:
        found = self._one("image-id", id) if _IMAGE.fullmatch(id) else None
        if found is None:
            self._not_too_new(id)
            if _IMAGE.fullmatch(id):
                self._delete_leftovers(id)
            return
        if tags_of(found).get(MANAGED) != "1":
            raise GuardRefused(f"{id} does not carry {MANAGED}=1")
        try:
            self._aws.write("ec2", "deregister_image", ImageId=id, DeleteAssociatedSnapshots=True)
        except NotFound:
            self._not_too_new(id)

    def _delete_leftovers(self, image: str) -> None:
        """Snapshots outlive their image where EC2 could not delete them together. One a call, as everywhere."""
        for snapshot in self._snapshots([image]):
            try:
                self._aws.write("ec2", "delete_snapshot", SnapshotId=snapshot["SnapshotId"])
            except NotFound:
                continue

    def _snapshots(self, images: Sequence[str]) -> Iterator[Raw]:
        """Those of ours that were made for these images, told by their descriptions."""
        filters = [
            {"Name": "description", "Values": [f"*for {image}*" for image in images]},
            {"Name": f"tag:{MANAGED}", "Values": ["1"]},
        ]
        return self._aws.pages("ec2", "describe_snapshots", "Snapshots", OwnerIds=["self"], Filters=filters)

    def _begun(self, images: Collection[str]) -> Mapping[str, set[str]]:
        """By image: the volumes of which a snapshot has begun. As many at once as there are threads."""
        found: dict[str, set[str]] = {image: set() for image in images}
        for snapshot in self._snapshots(sorted(images)):
            for image, volumes in found.items():
                if f"for {image}" in snapshot["Description"]:
                    volumes.add(snapshot["VolumeId"])
        return found

    def protect(self, id: str, on: bool, *, given: Given | None = None) -> None:
        compare(self._instance(id), given)
        for attribute in ("DisableApiStop", "DisableApiTermination"):  # one a call
            self._aws.write("ec2", "modify_instance_attribute", InstanceId=id, **{attribute: {"Value": on}})

    def tag(self, id: str, tags: Mapping[str, str | None], *, given: Given | None = None) -> None:
        instance = self._instance(id)
        compare(instance, given)
        was = tags_of(instance)
        # What is taken away first: it is a right, if it is anything.
        if gone := [name for name, value in tags.items() if value is None and name in was]:
            self._aws.write("ec2", "delete_tags", Resources=[id], Tags=[{"Key": name} for name in gone])
        if new := {name: value for name, value in tags.items() if value is not None and was.get(name) != value}:
            self._aws.write("ec2", "create_tags", Resources=[id], Tags=tag_list(new))

    # -- reading EC2 --------------------------------------------------------------------------------------------------

    def _instances(self, filter: str, values: Sequence[str]) -> Iterator[Raw]:
        """A filter leaves out what is not there; a list of ids would be refused for one of them."""
        if len(values) == 1 and filter in self._one_by:
            return iter([found] if (found := self._one(filter, values[0])) is not None else ())
        return self._described(filter, values)

    def _one(self, filter: str, value: str) -> Raw | None:
        """The instance or image of which that is true, as it was after this call began."""
        return self._one_by[filter]([value])[value]

    def _described(self, filter: str, values: Sequence[str]) -> Iterator[Raw]:
        for start in range(0, len(values), BATCH):
            filters = [{"Name": filter, "Values": list(values[start : start + BATCH])}]
            for reservation in self._aws.pages("ec2", "describe_instances", "Reservations", Filters=filters):
                for instance in reservation["Instances"]:
                    self._unseen.pop(instance["InstanceId"], None)
                    yield instance

    def _instance(self, id: str) -> Raw:
        """One that is not terminated. `NotFound`, or `NotYetVisible` while that may be the reason."""
        found = next(iter(self._instances("instance-id", [id])), None) if _INSTANCE.fullmatch(id) else None
        return self._there(id, found)

    def _there(self, id: str, found: Raw | None) -> Raw:
        if found is None:
            self._not_too_new(id)
            raise NotFound(f"there is no server {id} in {self._aws.lane}")
        if _STATES[found["State"]["Name"]] == "terminated":
            raise NotFound(f"the server {id} in {self._aws.lane} is terminated")
        return found

    def _registered(self, filter: str, values: Sequence[str]) -> Iterator[Raw]:
        for start in range(0, len(values), BATCH):
            filters = [{"Name": filter, "Values": list(values[start : start + BATCH])}]
            for image in self._aws.pages("ec2", "describe_images", "Images", Owners=["self"], Filters=filters):
                self._unseen.pop(image["ImageId"], None)
                if image["State"] == "available":
                    if len(self._available) >= MANY:
                        self._available.clear()
                    self._available[image["ImageId"]] = image
                yield image

    def _attached_volumes(self, instances: Collection[str]) -> Mapping[str, Sequence[Raw]]:
        """By instance."""
        wanted, found = sorted(instances), dict[str, list[Raw]]()
        for start in range(0, len(wanted), BATCH):
            filters = [_attached(wanted[start : start + BATCH])]
            for volume in self._aws.pages("ec2", "describe_volumes", "Volumes", Filters=filters):
                for at in volume["Attachments"]:
                    found.setdefault(at["InstanceId"], []).append(volume)
        return {id: found.get(id, ()) for id in wanted}

    def _not_too_new(self, id: str) -> None:
        """Raises `NotYetVisible` for what this process made a moment ago: not to be found is no proof yet."""
        if time.monotonic() - self._unseen.get(id, float("-inf")) < LAG:
            raise NotYetVisible(f"{id} was made a moment ago and does not show yet")

    def _servers(
        self, instances: Sequence[Raw] | Iterator[Raw], disks: Mapping[str, int] | None = None, *, checks: bool = True
    ) -> dict[str, Server]:
        """`disks`: bytes of all volumes of each; looked up where it is not told. `checks`: one runs when its status
        checks say so."""
        found = list(instances)
        self._load_types({each["InstanceType"] for each in found})
        disks = self._disks(found) if disks is None else disks
        ready = self._readiness(found) if checks else {}
        made: dict[str, Server] = {}
        for instance in found:
            id, tags = instance["InstanceId"], tags_of(instance)
            state, reason = ready.get(id, (_STATES[instance["State"]["Name"]], ""))
            launched = instance["LaunchTime"].timestamp()
            made[id] = Server(
                id=id,
                name=tags.get(NAME) or tags.get("Name") or id,
                state=state,
                address=instance.get("PrivateIpAddress") or "",
                size=Size(
                    memory=memory_of(self._types[instance["InstanceType"]]),
                    disk=disks.get(id, 0),
                    type=instance["InstanceType"],
                ),
                tags=tags,
                boot=f"{id}@{int(launched)}",  # a start has a launch time of its own, in whole seconds
                launched=launched,
                reason=reason or (instance.get("StateReason") or {}).get("Message", ""),
            )
        return made

    def _disks(self, instances: Sequence[Raw]) -> Mapping[str, int]:
        """Bytes of all volumes of each."""
        volumes = {
            each["InstanceId"]: [at["Ebs"]["VolumeId"] for at in each.get("BlockDeviceMappings", ()) if "Ebs" in at]
            for each in instances
        }
        now = time.monotonic()
        unknown = {id for all in volumes.values() for id in all if self._volumes.get(id, (0.0, 0))[0] < now}
        asked = sorted({instance for instance, all in volumes.items() if unknown & set(all)})
        for all in (self._volumes_of(asked) if asked else {}).values():
            for volume in all:
                self._volumes[volume["VolumeId"]] = (now + FRESH, int(volume["Size"]) * GIB)
        return {id: sum(self._volumes.get(each, (0.0, 0))[1] for each in all) for id, all in volumes.items()}

    def _readiness(self, instances: Sequence[Raw]) -> Mapping[str, tuple[ServerState, str]]:
        """State and reason of those that run and whose checks have not been passed for long."""
        ages = {
            each["InstanceId"]: time.time() - each["LaunchTime"].timestamp()
            for each in instances
            if each["State"]["Name"] == "running"
        }
        young = [id for id, age in ages.items() if age < CHECKED]
        told: dict[str, tuple[ServerState, str]] = {}
        for start in range(0, len(young), BATCH):
            told |= dict.fromkeys(young[start : start + BATCH], ("pending", "its status checks have not been made"))
            for status in self._statuses(young[start : start + BATCH]):
                id = status["InstanceId"]
                told[id] = _checked(status, ages[id])
        return told

    def _statuses(self, ids: Sequence[str]) -> Sequence[Raw]:
        asked = list(ids)
        for _ in range(2):
            try:
                return (
                    list(self._aws.pages("ec2", "describe_instance_status", "InstanceStatuses", InstanceIds=asked))
                    if asked
                    else []
                )
            except NotFound as error:  # ended since, and one that is not there spoils the call: it is named in it
                asked = [id for id in asked if id not in str(error)]
        return []

    def _with_protection(self, server: Server) -> Server:
        on = []
        for attribute in ("disableApiTermination", "disableApiStop"):
            try:
                told = self._aws.read("ec2", "describe_instance_attribute", InstanceId=server.id, Attribute=attribute)
            except NotFound:
                return server
            on.append(bool(told[attribute[0].upper() + attribute[1:]].get("Value")))
        return Server(**{**vars(server), "protected": any(on)})

    def _type(self, name: str) -> Raw:
        if not name:
            raise Refused("aws needs the type of the new servers: write target: {size: {type: m7i.large, ...}}")
        self._load_types({name})
        return self._types[name]

    def _kinds(self, names: set[str]) -> Mapping[str, Raw]:
        self._load_types(names)
        return self._types

    def _load_types(self, names: set[str]) -> None:
        unknown = sorted(names - set(self._types))
        for start in range(0, len(unknown), BATCH):
            asked = unknown[start : start + BATCH]
            try:
                for kind in self._aws.pages("ec2", "describe_instance_types", "InstanceTypes", InstanceTypes=asked):
                    self._types[kind["InstanceType"]] = kind
            except ProviderError as error:
                if error.code in ("InvalidInstanceType", "InvalidInstanceType.NotFound", "InvalidParameterValue"):
                    raise Refused(
                        f"EC2 knows no type {', '.join(asked)} in {self._aws.lane}", code=error.code
                    ) from None
                raise

    def _offered(self, kind: str, zone: str) -> list[str]:
        """Why the type cannot be had in that zone."""
        if kind not in self._zones:
            found = self._aws.pages(
                "ec2",
                "describe_instance_type_offerings",
                "InstanceTypeOfferings",
                LocationType="availability-zone",
                Filters=[{"Name": "instance-type", "Values": [kind]}],
            )
            self._zones[kind] = tuple(sorted({each["Location"] for each in found}))
        zones = self._zones[kind]
        return [] if zone in zones else [f"{kind} is not offered in {zone}, but in {', '.join(zones) or 'no zone'}"]


def _checked(status: Raw, age: float) -> tuple[ServerState, str]:
    checks = {
        "instance": status["InstanceStatus"]["Status"],
        "system": status["SystemStatus"]["Status"],
        "EBS": (status.get("AttachedEbsStatus") or {"Status": "ok"})["Status"],
    }
    failed = [f"the {name} status check is {said}" for name, said in checks.items() if said == "impaired"]
    if failed and age > GRACE:
        return "failed", "; ".join(failed)
    waiting = [f"the {name} status check is {said}" for name, said in checks.items() if said != "ok"]
    return ("pending", "; ".join(waiting)) if waiting else ("running", "")


def _image(found: Raw) -> Image:
    return Image(
        id=found["ImageId"],
        name=found.get("Name", ""),
        state=_IMAGE_STATES.get(found["State"], "failed"),
        disk=disk_of(found),
        tags=tags_of(found),
        reason=(found.get("StateReason") or {}).get("Message", ""),
    )


def compare(instance: Raw, given: Given | None) -> None:
    """Raises `GuardRefused` unless it carries these tags."""
    tags = tags_of(instance)
    for name, value in (given or {}).items():
        if tags.get(name) != value:
            raise GuardRefused(f"{instance['InstanceId']}: {name} is {tags.get(name)!r}: that was decided before")


def _rate(said: object) -> int | None:
    """MiB/s at which a volume is filled from its snapshot, where that is said (EC2's API reference, EbsBlockDevice)."""
    if said is None:
        return None
    if isinstance(said, bool) or not isinstance(said, int) or not 100 <= said <= 300:
        raise Refused(f"provider settings: volume_initialization_rate is 100 to 300 (MiB/s), not {said!r}")
    return said


def _said(instance: Raw) -> str:
    """Which fleet it says that it belongs to, for a policy that goes by it."""
    value = tags_of(instance).get(iam.FLEET_TAG)
    return f"{instance['InstanceId']} has {'none' if value is None else repr(value)}"


def _by(field: str, values: Collection[str], found: Iterator[Raw]) -> dict[str, Raw | None]:
    """Each value, with the first thing that has it; None where nothing does."""
    first: dict[str, Raw | None] = dict.fromkeys(values)
    for thing in found:
        if first.get(thing.get(field, "")) is None:
            first[thing.get(field, "")] = thing
    return first


def _attached(instances: Sequence[str]) -> dict[str, Any]:
    return {"Name": "attachment.instance-id", "Values": list(instances)}


def _literal(value: str) -> str:
    """A value for a filter, where * and ? would match anything."""
    return re.sub(r"([\\*?])", r"\\\1", value)
