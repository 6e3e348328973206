"""EC2 as moto answers it, put right: idempotency, uniqueness, time, sizes, limits and refusals are AWS' own."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar, cast

from moto.core.responses import ActionResult
from moto.core.utils import utcnow
from moto.ec2.exceptions import (
    EC2ClientError,
    InvalidAMIIdError,
    InvalidInstanceIdError,
    InvalidInstanceTypeError,
    InvalidSnapshotIdError,
    OperationDisableApiStopNotPermitted,
    OperationNotPermitted4,
)
from moto.ec2.models import ec2_backends
from moto.ec2.models.amis import Ami
from moto.ec2.models.elastic_block_store import Snapshot
from moto.ec2.models.instance_types import INSTANCE_TYPE_OFFERINGS, INSTANCE_TYPES
from moto.ec2.models.instances import Instance, InstanceState
from moto.ec2.responses import EC2Response
from moto.ec2.utils import convert_tag_spec, filter_reservations, parse_user_data, random_ami_id

from simcloud.addresses import CorrectedAddresses, freed
from simcloud.quotas import DEFAULT

if TYPE_CHECKING:
    from simcloud.cloud import SimCloud

STATUS_IDS = 100  # how many one DescribeInstanceStatus takes
_CODES = {"pending": 0, "running": 16, "shutting-down": 32, "terminated": 48, "stopping": 64, "stopped": 80}
Thing = TypeVar("Thing")


def ec2(account: str, region: str) -> Any:
    """moto's tables of EC2 there."""
    return ec2_backends[account][region]


class Timed(InstanceState):
    """A state that becomes another one when its time has come."""

    def __init__(self, cloud: SimCloud, first: str, then: str, seconds: float) -> None:
        self._cloud = cloud
        self.goes(first, then, seconds)

    def goes(self, first: str, then: str, seconds: float) -> None:
        self._first, self._then, self.at = first, then, self._cloud.now() + seconds

    @property
    def name(self) -> str:
        return self._then if self._cloud.now() >= self.at else self._first

    @name.setter
    def name(self, value: str) -> None:
        """moto sets what is to be; in how long it is, `goes` says."""

    @property
    def code(self) -> int:
        return _CODES[self.name]

    @code.setter
    def code(self, value: int) -> None: ...

    def __copy__(self) -> InstanceState:
        return InstanceState(self.name, self.code)


class SimInstance(Instance):
    """Made of a moto instance after the fact: `become`."""

    cloud: SimCloud
    _state: Timed
    asked: Mapping[str, Any]  # what RunInstances was called with

    def become(self, cloud: SimCloud, asked: Mapping[str, Any]) -> None:
        self.cloud, self.asked = cloud, asked
        self._state = Timed(cloud, "pending", "running", cloud.timings.pending)
        self.disable_api_termination = bool(asked.get("DisableApiTermination", False))
        self.ena_support = True
        self.current_instance_boot_mode = "legacy-bios" if self.architecture == "x86_64" else "uefi"
        cloud.ledgers.shows[self.id] = cloud.now() + cloud.timings.lag

    @property
    def instance_id(self) -> str:  # moto finds it by the name of its own class
        return self.id

    def start(self) -> InstanceState:
        was = copy.copy(self._state)
        if was.name == "stopped":
            super().start()
            self._state.goes("pending", "running", self.cloud.timings.pending)
            # Another start has another launch time, and AWS tells it in whole seconds.
            self.launch_time = max(utcnow(), self.launch_time + timedelta(seconds=1))
            if self.cloud.machines is not None:
                self.cloud.machines.start(self.id)
        return was

    def stop(self) -> InstanceState:
        was = copy.copy(self._state)
        if was.name in ("pending", "running"):
            super().stop()
            self._state.goes("stopping", "stopped", self.cloud.timings.stopping)
            if self.cloud.machines is not None:
                self.cloud.machines.stop(self.id)
        return was

    def terminate(self) -> InstanceState:
        was = copy.copy(self._state)
        if was.name not in ("shutting-down", "terminated"):
            freed(self.cloud, self)
            super().terminate()
            self._state.goes("shutting-down", "terminated", self.cloud.timings.shutting_down)
            if self.cloud.machines is not None:
                self.cloud.machines.destroy(self.id)
        return was

    def reboot(self) -> None:
        if self.cloud.machines is not None:
            self.cloud.machines.reboot(self.id)

    def _checks(self) -> dict[str, Any]:
        if self.state != "running":
            return {"Status": "not-applicable"}
        if self.id in self.cloud.ledgers.impaired:
            return {"Status": "impaired", "Details": [{"Name": "reachability", "Status": "failed"}]}
        if self.cloud.now() < self._state.at + self.cloud.timings.checks:
            return {"Status": "initializing", "Details": [{"Name": "reachability", "Status": "initializing"}]}
        return {"Status": "ok", "Details": [{"Name": "reachability", "Status": "passed"}]}

    @property
    def instance_status(self) -> dict[str, Any]:
        return self._checks()

    @property
    def system_status(self) -> dict[str, Any]:
        return {**self._checks(), "Status": "ok"} if self.state == "running" else self._checks()


class SimSnapshot(Snapshot):
    ready: Timed

    @property
    def status(self) -> str:
        return "completed" if self.ready.name == "running" else "pending"

    @status.setter
    def status(self, value: str) -> None: ...

    @property
    def progress(self) -> str:
        return "100%" if self.status == "completed" else "40%"


class SimAmi(Ami):
    """An image with the disks of its instance."""

    def __init__(
        self, cloud: SimCloud, backend: Any, *, name: str, disks: Sequence[Mapping[str, Any]], **more: Any
    ) -> None:
        self.cloud, self.ec2_backend = cloud, backend
        self.id = random_ami_id()
        self.image_id = self.id  # moto finds it by the name of its own class
        self.name, self.disks = name, disks
        self.description = more.get("description", "")
        self.instance_id = more.get("instance_id")
        self.architecture = more.get("architecture", "x86_64")
        self.root_device_name = more.get("root", "/dev/sda1")
        self.ready = Timed(cloud, "pending", "running", more.get("seconds", 0.0))
        self.failed = ""
        self.owner_id, self.owner_alias = backend.account_id, None
        self.image_type, self.image_location = "machine", f"{backend.account_id}/{name}"
        self.virtualization_type, self.hypervisor, self.root_device_type = "hvm", "xen", "ebs"
        self.kernel_id, self.platform = None, None
        self.sriov, self.ena_support, self.boot_mode = "simple", True, "legacy-bios"
        self.creation_date = utcnow()
        self.product_codes: set[str] = set()
        self.launch_permissions: list[dict[str, str]] = []
        backend.amis[self.id] = self

    @property
    def state(self) -> str:  # type: ignore[override] # which moto has as a plain attribute
        if self.failed and self.ready.name == "running":
            return "failed"
        return "available" if self.ready.name == "running" else "pending"

    @property
    def state_reason(self) -> dict[str, str] | None:
        # Known before it is failed: an answer reads one after the other, and time goes by between.
        return {"Code": "Client.Error", "Message": self.failed} if self.failed else None

    @property
    def block_device_mappings(self) -> list[dict[str, Any]]:
        return [{"DeviceName": disk["device"], "Ebs": dict(disk["ebs"])} for disk in self.disks]


def base_image(cloud: SimCloud, backend: Any, *, gib: int = 8, architecture: str = "x86_64") -> SimAmi:
    """An image to launch a first instance from."""
    zone = backend.region_name + "a"
    volume = backend.create_volume(size=gib, zone_name=zone)
    snapshot = backend.create_snapshot(volume.id, "base")
    backend.delete_volume(volume.id)
    ebs = {"SnapshotId": snapshot.id, "VolumeSize": gib, "VolumeType": "gp3", "DeleteOnTermination": True}
    image = SimAmi(
        cloud,
        backend,
        name=f"base-{architecture}-{gib}",
        disks=[{"device": "/dev/sda1", "ebs": {**ebs, "Encrypted": False}}],
        architecture=architecture,
    )
    snapshot.from_ami = image.id
    return image


class CorrectedEC2(CorrectedAddresses):
    cloud: SimCloud

    RESPONSE_KEY_PATH_TO_TRANSFORMER = {  # noqa: RUF012 - as moto declares it
        **EC2Response.RESPONSE_KEY_PATH_TO_TRANSFORMER,
        # A token that is used again tells the instance's state now, which may be its end.
        "RunInstances.Reservation.Instances.Instance.State": lambda state: state,
    }

    # -- instances ----------------------------------------------------------------------------------------------------

    def run_instances(self) -> ActionResult:
        backend, cloud = self.ec2_backend, self.cloud
        self.error_on_dryrun()
        token = self._get_param("ClientToken")
        asked = {k: v for k, v in self.querystring.items() if k not in ("ClientToken", "DryRun")}
        fingerprint = json.dumps(asked, sort_keys=True, default=str)
        place = (self.current_account, self.region, token)
        if token and place in cloud.ledgers.tokens:
            was, reservation = cloud.ledgers.tokens[place]
            if was != fingerprint:
                raise EC2ClientError(
                    "IdempotentParameterMismatch",
                    "Arguments on this idempotent request are inconsistent with arguments used in previous request(s).",
                )
            return ActionResult(backend.reservations[reservation])
        made = self.launch(token, self.params)
        if token:
            cloud.ledgers.tokens[place] = (fingerprint, made.id)
        return ActionResult(made)

    def launch(self, token: str | None, wanted: Mapping[str, Any]) -> Any:
        backend, cloud = self.ec2_backend, self.cloud
        kind, image_id = str(wanted.get("InstanceType", "m1.small")), str(wanted.get("ImageId", ""))
        image = backend.amis.get(image_id)
        if image is None or not cloud.visible(image_id):
            raise InvalidAMIIdError(image_id)
        if image.state != "available":
            raise EC2ClientError("InvalidAMIID.Unavailable", f"The image ID '{image_id}' is not available")
        nics = [dict(nic) for nic in wanted.get("NetworkInterfaces", [])]
        if nics and wanted.get("SubnetId"):
            raise EC2ClientError(
                "InvalidParameterCombination",
                "Network interfaces and an instance-level subnet ID may not be specified on the same request",
            )
        subnet = backend.get_subnet(wanted.get("SubnetId") or next(n["SubnetId"] for n in nics if "SubnetId" in n))
        self._check_type(kind, image, subnet.availability_zone)
        if subnet.available_ip_address_count < int(wanted.get("MinCount", 1)):
            raise EC2ClientError(
                "InsufficientFreeAddressesInSubnet",
                f"There are not enough free addresses in subnet '{subnet.id}' to satisfy the requested number of "
                "instances.",
            )
        disks = _disks(backend, image, wanted.get("BlockDeviceMappings", []))
        tags = convert_tag_spec(wanted.get("TagSpecifications", []))
        groups = [group for nic in nics for group in nic.get("Groups", [])] or wanted.get("SecurityGroupIds", [])
        for group in groups:
            if backend.get_security_group_from_id(group) is None:
                raise EC2ClientError("InvalidGroup.NotFound", f"The security group '{group}' does not exist")
        profile = wanted.get("IamInstanceProfile", {})
        reservation = backend.run_instances(
            image_id,
            int(wanted.get("MinCount", 1)),
            parse_user_data(wanted.get("UserData")),
            [],
            instance_type=kind,
            is_instance_type_default=False,
            region_name=self.region,
            placement=None if subnet else wanted.get("Placement", {}).get("AvailabilityZone"),
            subnet_id=None if nics else subnet.id,
            nics=nics,
            key_name=wanted.get("KeyName"),
            security_group_ids=[] if nics else list(groups),
            private_ip=wanted.get("PrivateIpAddress"),
            tags=tags,
            ebs_optimized=bool(wanted.get("EbsOptimized")),
            disable_api_stop=bool(wanted.get("DisableApiStop")),
            instance_initiated_shutdown_behavior=wanted.get("InstanceInitiatedShutdownBehavior"),
            monitoring_state="enabled" if wanted.get("Monitoring", {}).get("Enabled") else "disabled",
            metadata_options=wanted.get("MetadataOptions", {}),
            hibernation_options=wanted.get("HibernationOptions", {}),
            client_token=token,
            block_device_mappings=[
                {"DeviceName": disk["device"], "NoDevice": None, "Ebs": {**disk["ebs"], **_PLAIN_VOLUME}}
                for disk in disks
            ],
        )
        for instance in reservation.instances:
            instance.__class__ = SimInstance
            instance.become(cloud, wanted)
            instance.security_groups = [backend.get_security_group_from_id(group) for group in groups]
            for (
                index,
                nic,
            ) in instance.nics.items():  # one that was made with an instance goes with it, unless told not to
                told = next((each for each in nics if each.get("DeviceIndex", 0) == int(index)), {})
                nic.delete_on_termination = told.get("DeleteOnTermination", "NetworkInterfaceId" not in told)
            _finish_volumes(backend, instance, disks)
            if profile:
                backend.associate_iam_instance_profile(
                    instance_id=instance.id,
                    iam_instance_profile_name=profile.get("Name"),
                    iam_instance_profile_arn=profile.get("Arn"),
                )
            if cloud.machines is not None:
                mode = cloud.ledgers.clones.get(str(image.instance_id), "")
                cloud.machines.create(
                    instance.id,
                    instance.private_ip,
                    copy=cloud.disks / image_id,
                    memory=INSTANCE_TYPES[kind]["MemoryInfo"]["SizeInMiB"] * 1024**2,
                    disk=sum(int(disk["ebs"]["VolumeSize"]) for disk in disks) * 1024**3,
                    mode=mode,
                )
                cloud.machines.start(instance.id)
        return reservation

    def _check_type(self, kind: str, image: Any, zone: str) -> None:
        cloud, backend = self.cloud, self.ec2_backend
        known = INSTANCE_TYPES.get(kind)
        if known is None:
            raise InvalidInstanceTypeError(kind, error_type="InvalidParameterValue")
        offered = INSTANCE_TYPE_OFFERINGS["availability-zone"].get(self.region, [])
        if not any(each["InstanceType"] == kind and each["Location"] == zone for each in offered):
            raise EC2ClientError(
                "Unsupported",
                f"Your requested instance type ({kind}) is not supported in your requested Availability Zone ({zone}).",
            )
        if image.architecture not in known["ProcessorInfo"]["SupportedArchitectures"]:
            raise EC2ClientError(
                "InvalidParameterValue",
                f"The architecture '{known['ProcessorInfo']['SupportedArchitectures'][0]}' of the specified instance "
                f"type does not match the architecture '{image.architecture}' of the specified AMI.",
            )
        up = [each for each in backend.all_instances() if each.state in ("pending", "running")]
        room = cloud.ledgers.capacity.get((zone, kind))
        if room is not None and sum(e.instance_type == kind and e.placement.zone == zone for e in up) >= room:
            raise EC2ClientError(
                "InsufficientInstanceCapacity",
                f"We currently do not have sufficient {kind} capacity in the Availability Zone you requested ({zone}).",
            )
        quota = cloud.ledgers.vcpus.get((self.current_account, self.region), DEFAULT)
        used = sum(INSTANCE_TYPES[each.instance_type]["VCpuInfo"]["DefaultVCpus"] for each in up)
        if used + known["VCpuInfo"]["DefaultVCpus"] > quota:
            raise EC2ClientError(
                "VcpuLimitExceeded",
                f"You have requested more vCPU capacity than your current vCPU limit of {quota} allows.",
            )

    def describe_instances(self) -> ActionResult:
        ids, filters = self._get_param("InstanceIds", []), dict(self._filters_from_querystring())
        if ids and self._get_param("MaxResults") is not None:
            raise EC2ClientError(
                "InvalidParameterCombination",
                "The parameter instancesSet cannot be used with the parameter maxResults",
            )
        tokens = filters.pop("client-token", None)
        found = []
        for reservation in self.ec2_backend.all_reservations():
            reservation.instances = [
                each
                for each in reservation.instances
                if self.cloud.visible(each.id)
                and (not ids or each.id in ids)
                and (tokens is None or each.client_token in tokens)
            ]
            if reservation.instances:
                found.append(reservation)
        there = {each.id for reservation in found for each in reservation.instances}
        if absent := [id for id in ids if id not in there]:
            raise InvalidInstanceIdError(absent)
        page, token = self._page(filter_reservations(found, filters))
        return ActionResult({"Reservations": page, "NextToken": token})

    def describe_instance_status(self) -> ActionResult:
        ids = self._get_param("InstanceIds", [])
        if len(ids) > STATUS_IDS:
            raise EC2ClientError("InvalidParameterValue", f"At most {STATUS_IDS} instance IDs may be given")
        self._visible(ids)
        filters = [{"name": name, "values": values} for name, values in self._filters_from_querystring().items()]
        everyone = self._get_bool_param("IncludeAllInstances", False)
        found = self.ec2_backend.describe_instance_status(ids, everyone, filters)
        page, token = self._page([each for each in found if self.cloud.visible(each.id)])
        return ActionResult({"InstanceStatuses": page, "NextToken": token})

    def start_instances(self) -> ActionResult:
        for instance in self._instances():
            self._in_state(instance, ("pending", "running", "stopped"), "started")
            if instance.state == "stopped":
                zone, kind = instance.placement.zone, instance.instance_type
                room = self.cloud.ledgers.capacity.get((zone, kind))
                up = self.ec2_backend.all_instances()
                if room is not None and room <= sum(
                    e.state in ("pending", "running") and (e.placement.zone, e.instance_type) == (zone, kind)
                    for e in up
                ):
                    raise EC2ClientError(
                        "InsufficientInstanceCapacity", f"There is no room for a {kind} in {zone}: try again later."
                    )
        return self._changed("StartingInstances", lambda instance: instance.start())

    def stop_instances(self) -> ActionResult:
        for instance in self._instances():
            self._in_state(instance, ("pending", "running", "stopping", "stopped"), "stopped")
            if instance.disable_api_stop:
                raise OperationDisableApiStopNotPermitted(instance.id)
        return self._changed("StoppingInstances", lambda instance: instance.stop())

    def terminate_instances(self) -> ActionResult:
        for instance in self._instances():
            if instance.disable_api_termination:
                raise OperationNotPermitted4(instance.id)
        return self._changed("TerminatingInstances", lambda instance: instance.terminate())

    def _instances(self) -> list[Any]:
        ids = self._get_param("InstanceIds", [])
        self._visible(ids)
        return cast(list[Any], self.ec2_backend.get_multi_instances_by_id(ids))

    def _visible(self, ids: Sequence[str]) -> None:
        if hidden := [id for id in ids if not self.cloud.visible(id)]:
            raise InvalidInstanceIdError(hidden)

    @staticmethod
    def _in_state(instance: Any, states: Sequence[str], what: str) -> None:
        if instance.state not in states:
            raise EC2ClientError(
                "IncorrectInstanceState",
                f"The instance '{instance.id}' is not in a state from which it can be {what}.",
            )

    def _changed(self, key: str, change: Callable[[Any], InstanceState]) -> ActionResult:
        self.error_on_dryrun()
        rows = []
        for instance in self._instances():
            was = change(instance)
            rows.append(
                {"InstanceId": instance.id, "PreviousState": was, "CurrentState": copy.copy(instance.instance_state)}
            )
        return ActionResult({key: rows})

    def get_launch_template_data(self) -> ActionResult:
        id = self._get_param("InstanceId")
        self._visible([id])
        instance = self.ec2_backend.get_instance(id)
        return ActionResult({"LaunchTemplateData": _template(self.ec2_backend, instance)})

    def create_tags(self) -> ActionResult:
        self._visible([id for id in self._get_param("Resources", []) if id.startswith("i-")])
        if any(tag["Key"].startswith("aws:") for tag in self._get_param("Tags", [])):
            raise EC2ClientError("InvalidParameterValue", "Tag keys starting with 'aws:' are reserved for internal use")
        return super().create_tags()

    # -- images and disks ---------------------------------------------------------------------------------------------

    def create_image(self) -> ActionResult:
        backend, cloud = self.ec2_backend, self.cloud
        id, name = self._get_param("InstanceId"), self._get_param("Name")
        self._visible([id])
        instance = backend.get_instance(id)
        if not 3 <= len(name) <= 128:
            raise EC2ClientError("InvalidAMIName.Malformed", "AMI names must be between 3 and 128 characters long")
        if instance.state not in ("running", "stopping", "stopped"):
            raise EC2ClientError("IncorrectState", f"{id} is {instance.state}")
        taken = next((each for each in backend.amis.values() if each.name == name), None)
        if taken is not None:
            raise EC2ClientError("InvalidAMIName.Duplicate", f"AMI name {name} is already in use by AMI {taken.id}")
        self.error_on_dryrun()
        tags = convert_tag_spec(self._get_param("TagSpecifications", []))
        image = SimAmi(
            cloud,
            backend,
            name=name,
            disks=[],
            description=self._get_param("Description", ""),
            instance_id=id,
            architecture=instance.architecture,
            root=instance.root_device_name,
            seconds=cloud.timings.image,
        )
        cloud.ledgers.shows[image.id] = cloud.now() + cloud.timings.lag
        image.disks = [
            self._snapshot(image, device, block, tags) for device, block in instance.get_block_device_mapping
        ]
        image.add_tags(tags.get("image", {}))
        if cloud.machines is not None:
            if not self._get_bool_param("NoReboot", False) and instance.state == "running":
                cloud.machines.reboot(id)
            cloud.machines.snapshot(id, cloud.disks / image.id)
        return ActionResult({"ImageId": image.id})

    def _snapshot(self, image: SimAmi, device: str, block: Any, tags: Mapping[str, Any]) -> dict[str, Any]:
        backend = self.ec2_backend
        volume = backend.get_volume(block.volume_id)
        snapshot = backend.create_snapshot(
            volume.id, f"Created by CreateImage({image.instance_id}) for {image.id}", from_ami=image.id
        )
        snapshot.__class__ = SimSnapshot
        snapshot.ready = image.ready
        snapshot.add_tags(tags.get("snapshot", {}))
        ebs = {
            "SnapshotId": snapshot.id,
            "VolumeSize": volume.size,
            "VolumeType": volume.volume_type,
            "DeleteOnTermination": block.delete_on_termination,
            "Encrypted": volume.encrypted,
        }
        more = {"Iops": volume.iops, "Throughput": volume.throughput}
        return {"device": device, "ebs": {**ebs, **{name: value for name, value in more.items() if value}}}

    def describe_images(self) -> ActionResult:
        ids = self._get_param("ImageIds", [])
        if hidden := [id for id in ids if not self.cloud.visible(id)]:
            raise InvalidAMIIdError(hidden)
        found = self.ec2_backend.describe_images(
            ami_ids=ids,
            filters=self._filters_from_querystring(),
            exec_users=self._get_param("ExecutableUsers", []),
            owners=self._get_param("Owners", []),
        )
        page, token = self._page([each for each in found if self.cloud.visible(each.id)])
        return ActionResult({"Images": page, "NextToken": token})

    def deregister_image(self) -> ActionResult:
        id = self._get_param("ImageId")
        self.error_on_dryrun()
        self.ec2_backend.deregister_image(id)
        shutil.rmtree(self.cloud.disks / id, ignore_errors=True)
        told = []
        if self._get_bool_param("DeleteAssociatedSnapshots", False):
            for snapshot in [each for each in self.ec2_backend.snapshots.values() if each.from_ami == id]:
                self.ec2_backend.delete_snapshot(snapshot.id)
                told.append({"SnapshotId": snapshot.id, "ReturnCode": "success"})
        return ActionResult({"Return": True, "DeleteSnapshotResults": told})

    def describe_volumes(self) -> ActionResult:
        found = self.ec2_backend.describe_volumes(
            volume_ids=self._get_param("VolumeIds", []), filters=self._filters_from_querystring()
        )
        page, token = self._page(found)
        return ActionResult({"Volumes": page, "NextToken": token})

    def describe_snapshots(self) -> ActionResult:
        ids = self._get_param("SnapshotIds", [])
        if any(id not in self.ec2_backend.snapshots for id in ids):
            raise InvalidSnapshotIdError()
        found = self.ec2_backend.describe_snapshots(snapshot_ids=ids, filters=self._filters_from_querystring())
        page, token = self._page(found)
        return ActionResult({"Snapshots": page, "NextToken": token})

    def _page(self, found: Sequence[Thing]) -> tuple[Sequence[Thing], str | None]:
        """This page of an answer, and the token of the next one."""
        start = int(self._get_param("NextToken") or 0)
        end = start + min(int(self._get_param("MaxResults") or self.cloud.page), self.cloud.page)
        return found[start:end], str(end) if end < len(found) else None


def launch_for(cloud: SimCloud, account: str, region: str, wanted: Mapping[str, Any]) -> SimInstance:
    """The instance that another service launches by a RunInstances of its own. Raises what that call says."""
    call = CorrectedEC2()
    call.cloud, call.current_account, call.region = cloud, account, region
    made: SimInstance = call.launch(None, wanted).instances[0]
    return made


# What moto refuses or invents when it makes a volume: set on the volume itself, by `_finish_volumes`.
_PLAIN_VOLUME = {"Iops": None, "Throughput": None, "VolumeType": None, "Encrypted": False, "KmsKeyId": None}


def _disks(backend: Any, image: SimAmi, asked: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The image's disks with what the call says otherwise, and further ones."""
    disks = {disk["device"]: dict(disk["ebs"]) for disk in image.disks}
    for mapping in asked:
        device = mapping["DeviceName"]
        if "NoDevice" in mapping:
            disks.pop(device, None)
            continue
        disks[device] = {**disks.get(device, {"VolumeType": "gp2"}), **mapping.get("Ebs", {})}
    for device, ebs in disks.items():
        snapshot = ebs.get("SnapshotId")
        least = backend.get_snapshot(snapshot).volume_size if snapshot else 1
        if int(ebs.get("VolumeSize", least)) < least:
            raise EC2ClientError(
                "InvalidBlockDeviceMapping",
                f"Volume of size {ebs['VolumeSize']}GB is smaller than snapshot '{snapshot}', expect size>= {least}GB",
            )
        kind = ebs.get("VolumeType", "gp2")
        if (kind in ("io1", "io2") and not ebs.get("Iops")) or (kind not in ("gp3", "io1", "io2") and ebs.get("Iops")):
            raise EC2ClientError("InvalidParameterCombination", f"The parameter iops does not fit {kind} of {device}")
        if kind != "gp3" and ebs.get("Throughput"):
            raise EC2ClientError("InvalidParameterCombination", f"The parameter throughput does not fit {kind}")
        if (rate := ebs.get("VolumeInitializationRate")) and not (snapshot and 100 <= int(rate) <= 300):
            raise EC2ClientError("InvalidParameterValue", f"{device}: no volume is initialized at {rate} MiB/s")
    return [{"device": device, "ebs": ebs} for device, ebs in disks.items()]


def _finish_volumes(backend: Any, instance: Any, disks: Sequence[Mapping[str, Any]]) -> None:
    wanted = {disk["device"]: disk["ebs"] for disk in disks}
    for device, block in instance.get_block_device_mapping:
        volume, ebs = backend.get_volume(block.volume_id), wanted[device]
        volume.volume_type = ebs.get("VolumeType") or "gp2"
        volume.iops = ebs.get("Iops") or (3000 if volume.volume_type == "gp3" else None)
        volume.throughput = ebs.get("Throughput") or (125 if volume.volume_type == "gp3" else None)
        volume.volume_initialization_rate = ebs.get("VolumeInitializationRate")
        volume.encrypted = bool(ebs.get("Encrypted"))
        volume.kms_key_id = ebs.get("KmsKeyId")
        block.delete_on_termination = bool(ebs.get("DeleteOnTermination", True))


_KEPT = (
    "CreditSpecification",
    "CpuOptions",
    "EnclaveOptions",
    "HibernationOptions",
    "MaintenanceOptions",
    "PrivateDnsNameOptions",
    "CapacityReservationSpecification",
)


def _template(backend: Any, instance: Any) -> dict[str, Any]:
    """What a template would say to make such an instance again."""
    asked = getattr(instance, "asked", {})
    association = backend.iam_instance_profile_associations.get(instance.id)
    options = instance.metadata_options
    interfaces = [
        {
            "DeviceIndex": index,
            "SubnetId": nic.subnet.id,
            "Groups": [group.id for group in nic.group_set] or [group.id for group in instance.security_groups],
            "Description": nic.description,
            "DeleteOnTermination": nic.delete_on_termination,
            "InterfaceType": "interface",
            "NetworkInterfaceId": nic.id,
            "PrivateIpAddresses": [{"Primary": True, "PrivateIpAddress": nic.private_ip_address}],
            **({"AssociatePublicIpAddress": True} if nic.public_ip else {}),
        }
        for index, nic in sorted(instance.nics.items())
    ]
    mappings = []
    for device, block in instance.get_block_device_mapping:
        volume = backend.get_volume(block.volume_id)
        ebs = {
            "SnapshotId": volume.snapshot_id,
            "VolumeSize": volume.size,
            "VolumeType": volume.volume_type,
            "DeleteOnTermination": block.delete_on_termination,
            "Encrypted": volume.encrypted,
            "Iops": volume.iops,
            "Throughput": volume.throughput,
            "KmsKeyId": volume.kms_key_id,
        }
        mappings.append({"DeviceName": device, "Ebs": {k: v for k, v in ebs.items() if v is not None}})
    whole = {
        "ImageId": instance.image_id,
        "InstanceType": instance.instance_type,
        "KeyName": instance.key_name,
        "UserData": instance.user_data,
        "IamInstanceProfile": {"Arn": association.iam_instance_profile.arn} if association is not None else None,
        "Monitoring": {"Enabled": instance.monitored},
        "EbsOptimized": bool(instance.ebs_optimized),
        "DisableApiTermination": bool(instance.disable_api_termination),
        "DisableApiStop": bool(instance.disable_api_stop),
        "InstanceInitiatedShutdownBehavior": instance.instance_initiated_shutdown_behavior,
        "Placement": {"AvailabilityZone": instance.placement.zone, "GroupName": "", "Tenancy": "default"},
        "MetadataOptions": {
            "State": options.state,
            "HttpTokens": options.http_tokens,
            "HttpPutResponseHopLimit": options.http_put_response_hop_limit,
            "HttpEndpoint": options.http_endpoint,
            "HttpProtocolIpv6": options.http_protocol_ipv6,
            "InstanceMetadataTags": options.instance_metadata_tags,
        },
        "NetworkInterfaces": interfaces,
        "BlockDeviceMappings": mappings,
        **{name: asked[name] for name in _KEPT if asked.get(name)},
    }
    return {name: value for name, value in whole.items() if value is not None}
