"""What EC2 says of an instance, and what a clone of it is asked for. Pure: no call is made here."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from providers.compute import Size

GIB, MIB = 1024**3, 1024**2
ROLE_TAG = "changeover:"
# Tags by which controllers of others choose their servers. `leave_tags` of the settings adds to these.
TRAFFIC_TAGS = ("kubernetes.io/*", "k8s.io/*", "*.k8s.aws/*", "eks:*", "karpenter.sh/*", "*.karpenter.sh/*")
# What belongs to a controller that would fight over it: tag, who that is, and what to do instead.
OWNERS = (
    ("aws:autoscaling:groupName", "the Auto Scaling group", "refresh the group's instances instead"),
    ("aws:cloudformation:stack-name", "the CloudFormation stack", "change the stack's parameters instead"),
    ("aws:ec2:fleet-id", "the EC2 fleet", "change the fleet's launch template instead"),
    ("aws:ec2spot:fleet-request-id", "the spot fleet", "change the fleet's launch template instead"),
    ("aws:elasticmapreduce:job-flow-id", "the EMR cluster", "resize the cluster instead"),
    ("eks:cluster-name", "the EKS cluster", "update its node group instead"),
    ("karpenter.sh/nodepool", "the Karpenter node pool", "change the node pool instead"),
)
# What a template of an instance says that goes into its clone as it is.
KEPT = (
    "KeyName",
    "Monitoring",
    "InstanceInitiatedShutdownBehavior",
    "LicenseSpecifications",
    "HibernationOptions",
    "EnclaveOptions",
    "MaintenanceOptions",
    "PrivateDnsNameOptions",
)
METADATA = ("HttpTokens", "HttpPutResponseHopLimit", "HttpEndpoint", "HttpProtocolIpv6", "InstanceMetadataTags")
PLACEMENT = ("Affinity", "GroupName", "GroupId", "PartitionNumber", "Tenancy")
IOPS_TYPES = ("gp3", "io1", "io2")


def tags_of(thing: Mapping[str, Any]) -> dict[str, str]:
    return {tag["Key"]: tag["Value"] for tag in thing.get("Tags") or ()}


def tag_list(tags: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"Key": name, "Value": value} for name, value in sorted(tags.items())]


def owner_of(instance: Mapping[str, Any]) -> str:
    """Why somebody else would fight over this instance, and what to do instead; empty where nobody would."""
    tags, id = tags_of(instance), instance["InstanceId"]
    for name, who, instead in OWNERS:
        if name in tags:
            return f"{id} belongs to {who} {tags[name]}, which would replace or end it by itself: {instead}"
    if operator := (instance.get("Operator") or {}).get("Principal"):
        return f"{id} is managed by {operator}, which would refuse its replacement: let that service replace it"
    if instance.get("InstanceLifecycle") == "spot":
        return f"{id} is a spot instance, which EC2 may end at any moment: replace it through its own request"
    return ""


def unlike(instance: Mapping[str, Any]) -> str:
    """What of this instance a clone could not have; empty where it can have all."""
    id = instance["InstanceId"]
    if instance.get("RootDeviceType", "ebs") != "ebs":
        return f"{id} runs from its instance store, of which EC2 makes no image"
    if instance.get("SourceDestCheck") is False:
        return f"{id} forwards packets (its source/destination check is off): routes that lead to it would not follow"
    if (instance.get("Placement") or {}).get("Tenancy") == "host":
        return f"{id} runs on a dedicated host, which has no room for a second one by itself"
    return ""


def misfits(
    instance: Mapping[str, Any], old: Mapping[str, Any], new: Mapping[str, Any], template: Mapping[str, Any]
) -> list[str]:
    """Why the instance cannot go on as one of the new type, one line each. `old` and `new` are DescribeInstanceTypes'
    words for its types, `template` is GetLaunchTemplateData's for the instance."""
    kind, id = new["InstanceType"], instance["InstanceId"]
    processors = new.get("ProcessorInfo", {}).get("SupportedArchitectures", [])
    network = new.get("NetworkInfo", {})
    found: list[str] = []

    def no(text: str) -> None:
        found.append(f"{kind} {text}")

    architecture = instance.get("Architecture", "x86_64")
    if architecture not in processors:
        no(f"has processors of {', '.join(processors)}, and {id} is {architecture}")
    virtual = instance.get("VirtualizationType", "hvm")
    if virtual not in new.get("SupportedVirtualizationTypes", [virtual]):
        no(f"knows no {virtual} virtualization, which {id} has")
    boot = instance.get("CurrentInstanceBootMode")
    if boot and boot not in new.get("SupportedBootModes", [boot]):
        no(f"does not boot as {boot}, which {id} does")
    if network.get("EnaSupport") == "required" and instance.get("EnaSupport") is False:
        no(f"needs the ENA driver, and {id} is not marked as having it (ENA support)")
    if "ebs" not in new.get("SupportedRootDeviceTypes", ["ebs"]):
        no("has no EBS root device")
    if "on-demand" not in new.get("SupportedUsageClasses", ["on-demand"]):
        no("cannot be had on demand")
    interfaces = len(template.get("NetworkInterfaces") or ())
    most = network.get("MaximumNetworkInterfaces")
    if most is not None and interfaces > most:
        no(f"takes {most} network interfaces, and {id} has {interfaces}")
    disks = len(instance.get("BlockDeviceMappings") or ())
    most = new.get("EbsInfo", {}).get("MaximumEbsAttachments")
    if most is not None and disks > most:
        no(f"takes {most} EBS volumes, and {id} has {disks}")
    if (template.get("HibernationOptions") or {}).get("Configured") and not new.get("HibernationSupported"):
        no(f"cannot hibernate, and {id} may")
    if (template.get("EnclaveOptions") or {}).get("Enabled") and new.get("NitroEnclavesSupport") == "unsupported":
        no(f"has no enclaves, and {id} has them on")
    if old.get("InstanceStorageSupported") and not new.get("InstanceStorageSupported"):
        no(f"has no instance store, and {id}'s type {old['InstanceType']} has one")
    group = (template.get("Placement") or {}).get("GroupName")
    strategies = new.get("PlacementGroupInfo", {}).get("SupportedStrategies")
    if group and strategies == []:
        no(f"cannot be in a placement group, and {id} is in {group}")
    return found


def too_small(new: Mapping[str, Any], size: Size) -> str:
    """What the type lacks of the size that was asked for; empty where it has all."""
    memory = memory_of(new)
    if memory < size.memory:
        return f"{new['InstanceType']} has {memory // MIB} MiB of memory, {size.memory // MIB} MiB are asked for"
    return ""


def memory_of(kind: Mapping[str, Any]) -> int:
    """Bytes."""
    return int(kind["MemoryInfo"]["SizeInMiB"]) * MIB


def disk_of(image: Mapping[str, Any]) -> int:
    """The least disk in bytes that a server of this image has: all its volumes together."""
    return sum(int(each.get("Ebs", {}).get("VolumeSize", 0)) for each in image.get("BlockDeviceMappings") or ()) * GIB


def launch_request(
    *,
    template: Mapping[str, Any],
    image: Mapping[str, Any],
    volumes: Mapping[str, Mapping[str, Any]],
    kind: Mapping[str, Any],
    size: Size,
    tags: Mapping[str, str],
    old_tags: Mapping[str, str],
    leave_tags: Sequence[str],
    user_data: bool,
    rate: int | None = None,
) -> dict[str, Any]:
    """The RunInstances call, but for its token, that makes of the image an instance like the one of which `template`
    and `volumes` (by device) were read. It has no protection of its own and takes its volumes with it when it ends, so
    that it can be taken back. `Size.disk` beyond what the image has goes to the root volume. `rate`: MiB/s at which its
    volumes are filled from their snapshots; EBS' own, as they are read, where there is none."""
    common = carried(old_tags, leave_tags)
    request: dict[str, Any] = {
        "ImageId": image["ImageId"],
        "InstanceType": size.type,
        "MinCount": 1,
        "MaxCount": 1,
        "DisableApiTermination": False,
        "DisableApiStop": False,
        "NetworkInterfaces": _interfaces(template.get("NetworkInterfaces") or (), size.subnet),
        "BlockDeviceMappings": _mappings(image, volumes, size, rate),
        "TagSpecifications": [
            {"ResourceType": "instance", "Tags": tag_list({**common, **tags})},
            {"ResourceType": "volume", "Tags": tag_list({**common, **tags})},
            {"ResourceType": "network-interface", "Tags": tag_list(tags)},
        ],
        **{name: template[name] for name in KEPT if template.get(name)},
    }
    if profile := template.get("IamInstanceProfile"):  # by one of the two
        request["IamInstanceProfile"] = {"Arn": profile["Arn"]} if profile.get("Arn") else {"Name": profile["Name"]}
    options = template.get("MetadataOptions") or {}
    if kept := {name: options[name] for name in METADATA if options.get(name) not in (None, "")}:
        request["MetadataOptions"] = kept
    where = template.get("Placement") or {}
    if kept := {name: where[name] for name in PLACEMENT if where.get(name) not in (None, "")}:
        request["Placement"] = kept
    if template.get("EbsOptimized") and kind.get("EbsInfo", {}).get("EbsOptimizedSupport") != "unsupported":
        request["EbsOptimized"] = True
    if template.get("CreditSpecification") and kind.get("BurstablePerformanceSupported"):
        request["CreditSpecification"] = template["CreditSpecification"]
    if user_data and template.get("UserData"):
        request["UserData"] = base64.b64decode(template["UserData"])  # the client encodes it again
    return request


def carried(tags: Mapping[str, str], leave: Sequence[str]) -> dict[str, str]:
    """A's tags that B has from its beginning: none that are AWS' or ours, and none that would bring it traffic."""
    patterns = (*TRAFFIC_TAGS, *leave)
    return {
        name: value
        for name, value in tags.items()
        if not name.startswith(("aws:", ROLE_TAG)) and not any(fnmatchcase(name, pattern) for pattern in patterns)
    }


def _interfaces(found: Sequence[Mapping[str, Any]], subnet: str) -> list[dict[str, Any]]:
    """New interfaces in the same subnets and groups: addresses stay where they are. Those that are in the subnet of the
    first one are in `subnet` instead, where that is said."""
    made: list[dict[str, Any]] = []
    ordered = sorted(found, key=lambda each: (each.get("NetworkCardIndex", 0), each.get("DeviceIndex", 0)))
    for nic in ordered:
        kept: dict[str, Any] = {
            name: nic[name]
            for name in ("DeviceIndex", "NetworkCardIndex", "SubnetId", "Groups", "Description")
            if nic.get(name) not in (None, "", [])
        }
        if nic.get("InterfaceType") in ("efa", "efa-only"):
            kept["InterfaceType"] = nic["InterfaceType"]
        if nic.get("Ipv6Addresses") or nic.get("Ipv6AddressCount"):
            kept["Ipv6AddressCount"] = int(nic.get("Ipv6AddressCount") or len(nic["Ipv6Addresses"]))
        if more := len(nic.get("PrivateIpAddresses") or ()) - 1:
            kept["SecondaryPrivateIpAddressCount"] = more
        if len(found) == 1 and nic.get("AssociatePublicIpAddress") is not None:  # only one interface may ask for it
            kept["AssociatePublicIpAddress"] = nic["AssociatePublicIpAddress"]
        if subnet and nic.get("SubnetId") == ordered[0].get("SubnetId"):
            kept["SubnetId"] = subnet
        made.append({**kept, "DeleteOnTermination": True})
    return made


def _mappings(
    image: Mapping[str, Any], volumes: Mapping[str, Mapping[str, Any]], size: Size, rate: int | None
) -> list[dict[str, Any]]:
    """One for each volume of the image, at least as large, with the kind and the key that A's volume has."""
    found = [each for each in image.get("BlockDeviceMappings") or () if "Ebs" in each]
    spare = size.disk // GIB - disk_of(image) // GIB
    made = []
    for mapping in found:
        device, ebs = mapping["DeviceName"], mapping["Ebs"]
        old = volumes.get(device, {})
        wanted: dict[str, Any] = {
            "VolumeSize": int(ebs["VolumeSize"]) + (spare if device == image.get("RootDeviceName") else 0),
            "VolumeType": old.get("VolumeType") or ebs.get("VolumeType") or "gp3",
            "DeleteOnTermination": True,
        }
        if wanted["VolumeType"] in IOPS_TYPES and old.get("Iops"):
            wanted["Iops"] = old["Iops"]
        if wanted["VolumeType"] == "gp3" and old.get("Throughput"):
            wanted["Throughput"] = old["Throughput"]
        if old.get("Encrypted"):
            wanted["Encrypted"] = True
            if old.get("KmsKeyId"):
                wanted["KmsKeyId"] = old["KmsKeyId"]
        if rate is not None and ebs.get("SnapshotId"):
            wanted["VolumeInitializationRate"] = rate
        made.append({"DeviceName": device, "Ebs": wanted})
    return made
