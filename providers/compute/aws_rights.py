"""What credentials have to allow for EC2 instances to be replaced: as narrow as EC2 lets it be said."""

from __future__ import annotations

from collections.abc import Collection

from providers.clients import iam
from providers.clients.aws import Place
from providers.rights import Statement

LOOKS = (
    "ec2:DescribeImages",
    "ec2:DescribeInstanceAttribute",
    "ec2:DescribeInstanceStatus",
    "ec2:DescribeInstanceTypeOfferings",
    "ec2:DescribeInstanceTypes",
    "ec2:DescribeInstances",
    "ec2:DescribeSnapshots",
    "ec2:DescribeSubnets",
    "ec2:DescribeVolumes",
    "ec2:GetLaunchTemplateData",
    "servicequotas:GetAWSDefaultServiceQuota",
    "servicequotas:GetServiceQuota",
    "sts:GetCallerIdentity",
)
CHANGES = (
    "ec2:CreateTags",
    "ec2:DeleteTags",
    "ec2:ModifyInstanceAttribute",
    "ec2:StartInstances",
    "ec2:StopInstances",
)
INTO = ("key-pair", "network-interface", "placement-group", "security-group", "subnet")
OURS = {"aws:ResourceTag/changeover:managed": "1"}
GIVEN_UP = {"aws:ResourceTag/changeover:disposable": "1"}
MARKED = {"aws:RequestTag/changeover:managed": "1"}
UNKNOWN_ROLE = "ROLE-OF-THE-SERVERS"  # where nobody may look: to be replaced by whoever reads it


def statements(place: Place, *, fleet: str, roles: Collection[str] | None, keys: Collection[str]) -> list[Statement]:
    """`roles`: ARNs of what the servers are, None if it could not be seen. `keys`: ARNs of those that encrypt their
    volumes, if they are not AWS' own."""

    def ec2(*kinds: str) -> list[str]:
        return [iam.arn(place, "ec2", f"{kind}/*") for kind in kinds]

    images, snapshots = (iam.public(place, "ec2", f"{kind}/*") for kind in ("image", "snapshot"))
    (instances,) = ec2("instance")
    of_fleet = iam.of_fleet(fleet)
    passed = [iam.role(place, UNKNOWN_ROLE)] if roles is None else sorted(roles)
    found = [
        iam.allow("Look", LOOKS),
        iam.allow("ChangeTheFleet", [*CHANGES, "ec2:CreateImage"], instances, StringEquals=of_fleet),
        iam.allow("ImagesAreOurs", ["ec2:CreateImage"], [images, snapshots]),
        iam.allow("LaunchWithOurMark", ["ec2:RunInstances"], ec2("instance", "volume"), StringEquals=MARKED),
        iam.allow("LaunchInto", ["ec2:RunInstances"], [images, snapshots, *ec2(*INTO)]),
        iam.allow(
            "TagWhatIsMade",
            ["ec2:CreateTags"],
            StringEquals={"ec2:CreateAction": ["CreateImage", "RunInstances"]},
        ),
        iam.allow("EndServersWeMade", ["ec2:TerminateInstances"], instances, StringEquals=OURS),
        iam.allow("EndServersGivenUp", ["ec2:TerminateInstances"], instances, StringEquals={**of_fleet, **GIVEN_UP}),
        iam.allow("EndImagesWeMade", ["ec2:DeregisterImage"], images, StringEquals=OURS),
        iam.allow("EndSnapshotsWeMade", ["ec2:DeleteSnapshot"], snapshots, StringEquals=OURS),
    ]
    if passed:
        to = {"iam:PassedToService": "ec2.amazonaws.com"}
        found.append(iam.allow("GiveTheRoleOfTheFleet", ["iam:PassRole"], passed, StringEquals=to))
    if keys:
        use = ["kms:DescribeKey", "kms:GenerateDataKeyWithoutPlaintext", "kms:ReEncryptFrom", "kms:ReEncryptTo"]
        found.append(iam.allow("UseTheKeysOfTheVolumes", use, sorted(keys)))
        grants = {"kms:GrantIsForAWSResource": "true"}
        found.append(iam.allow("LendThemToEC2", ["kms:CreateGrant"], sorted(keys), Bool=grants))
    return found


def stack_statements(place: Place, *, stack_role: str, template: str) -> list[Statement]:
    """For servers that are stacks, beside the above. `template` is a path, or s3://BUCKET/KEY. What else the template
    makes nobody can know here: without a `stack_role` these credentials have to allow that too."""
    ours, look = iam.arn(place, "cloudformation", "stack/co-*"), ["DescribeStacks", "ValidateTemplate"]
    more = ["DeleteStack", "DescribeStackEvents", "DescribeStackResources", "UpdateTerminationProtection"]
    found = [
        iam.allow("Look", [f"cloudformation:{each}" for each in look]),
        # TagResource is no call: AWS asks for it where CreateStack brings tags.
        iam.allow(
            "MakeStacks", ["cloudformation:CreateStack", "cloudformation:TagResource"], ours, StringEquals=MARKED
        ),
        iam.allow("ChangeOurStacks", [f"cloudformation:{each}" for each in more], ours),
    ]
    if stack_role:
        to = {"iam:PassedToService": "cloudformation.amazonaws.com"}
        found.append(iam.allow("GiveTheRoleOfTheStacks", ["iam:PassRole"], stack_role, StringEquals=to))
    else:  # it launches in our name, and does not tag the volumes
        by = {"ForAnyValue:StringEquals": {"aws:CalledVia": "cloudformation.amazonaws.com"}}
        found.append(iam.allow("LaunchByStacks", ["ec2:RunInstances"], iam.arn(place, "ec2", "volume/*"), **by))
    if template.startswith("s3://"):
        at = f"arn:{iam.partition(place)}:s3:::{template.removeprefix('s3://')}"
        found.append(iam.allow("ReadTheTemplate", ["s3:GetObject", "s3:GetObjectVersion"], at))
    return found
