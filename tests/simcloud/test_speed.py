"""What is made faster than moto has it answers as moto does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from moto.core.serialize import XFormedAttributePicker
from moto.ec2.models.tags import TagBackend

from simcloud import speed
from tests.simcloud.conftest import Sim


def test_what_is_hastened_is_answered_as_by_moto(simulated: Sim, monkeypatch: pytest.MonkeyPatch) -> None:
    tags = [{"Key": "Name", "Value": "web-1"}, {"Key": "shop", "Value": "a*?"}]
    specs = [{"ResourceType": kind, "Tags": tags} for kind in ("instance", "volume")]
    id = simulated.running(TagSpecifications=specs)
    simulated.launch()
    simulated.image(id, "web-1", TagSpecifications=[{"ResourceType": "image", "Tags": tags}])
    hastened = _told(simulated)
    monkeypatch.setattr(TagBackend, "describe_tags", speed.TAGS)
    monkeypatch.setattr(XFormedAttributePicker, "__call__", speed.ATTRIBUTE)
    assert _told(simulated) == hastened
    assert hastened["describe_tags"]["Tags"]
    assert [each["Instances"][0].get("Tags") for each in hastened["describe_instances"]["Reservations"]] == [tags, None]


def _told(there: Sim) -> Mapping[str, Any]:
    ec2 = there.client("ec2")
    looks = ("instances", "instance_status", "volumes", "images", "snapshots", "subnets", "security_groups", "tags")
    told = {f"describe_{what}": getattr(ec2, f"describe_{what}")() for what in looks}
    return {
        what: {name: answer[name] for name in answer if name != "ResponseMetadata"} for what, answer in told.items()
    }
