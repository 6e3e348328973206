"""The same answers as moto's, without what it does anew for each attribute of each thing: a fleet of some hundreds that
is looked at again and again is otherwise most of what a machine has to do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moto.core.serialize import DEFAULT_ALIAS_PROVIDERS, AttributePickerContext, XFormedAttributePicker
from moto.core.utils import get_value
from moto.ec2.models.tags import TagBackend
from moto.ec2.utils import EC2_PREFIX_TO_RESOURCE, get_prefix

ABSENT = object()
PATTERN = frozenset("*?[\\")  # what makes a filter's value one
TAGS, ATTRIBUTE = TagBackend.describe_tags, XFormedAttributePicker.__call__  # moto's own


def hasten() -> None:
    """From now on, in this process."""
    TagBackend.describe_tags = _tags  # type: ignore[method-assign] # moto's own are slow, and it offers no other way
    XFormedAttributePicker.__call__ = _attribute  # type: ignore[assignment,method-assign] # as above


def _tags(self: TagBackend, filters: dict[str, list[str]] | None = None) -> list[dict[str, str]]:
    """Those of one thing are looked up; moto looks through those of all."""
    asked = (filters or {}).get("resource-id", [])
    if filters is None or len(filters) != 1 or len(asked) != 1 or PATTERN & set(asked[0]):
        return TAGS(self, filters)
    (id,) = asked
    told: Mapping[str, str] = self.tags.get(id, {})
    kind = EC2_PREFIX_TO_RESOURCE.get(get_prefix(id), "")
    return [{"resource_id": id, "key": key, "value": value, "resource_type": kind} for key, value in told.items()]


def _attribute(self: XFormedAttributePicker, context: AttributePickerContext) -> Any:
    """By which names it may be found follows from its place in AWS' model and from the class of what has it; what is
    made of it, from the way to it."""
    if self.alias_providers is not DEFAULT_ALIAS_PROVIDERS:
        return ATTRIBUTE(self, context)
    names: dict[Any, tuple[str, ...]] = context.shape.__dict__.setdefault("names_of_attributes", {})
    place = (type(context.obj), context.key)
    if place not in names:
        names[place] = tuple(dict.fromkeys(self.get_possible_keys(context)))
    found = (get_value(context.obj, name, ABSENT) for name in names[place])
    value = next((each for each in found if each is not ABSENT), None)
    path, made = f"{context.key_path}.{context.key}", self.__dict__.setdefault("made_of_attributes", {})
    if path not in made:
        told = self.response_transformers.items()
        made[path] = next((transform for end, transform in told if path.endswith(end)), None)
    return value if made[path] is None else made[path](value)
