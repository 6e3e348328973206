"""Templates of CloudFormation: read, checked as CreateStack checks them at once, and their functions answered."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import yaml
from moto.core.exceptions import ServiceException

_IN_TEXT = re.compile(r"\$\{(!?)([A-Za-z0-9:.]+)\}")


class ValidationError(ServiceException):
    code = "ValidationError"


class _Loader(yaml.SafeLoader):
    """YAML with the short forms of the functions: `!Ref x` is `{Ref: x}`."""


def _short(loader: _Loader, name: str, node: yaml.Node) -> dict[str, Any]:
    value: Any
    match node:
        case yaml.SequenceNode():
            value = loader.construct_sequence(node, deep=True)
        case yaml.MappingNode():
            value = loader.construct_mapping(node, deep=True)
        case _:
            value = node.value.split(".", 1) if name == "GetAtt" else node.value
    return {name if name in ("Ref", "Condition") else f"Fn::{name}": value}


_Loader.add_multi_constructor("!", _short)
_Loader.yaml_implicit_resolvers = {  # a version is a text, though it looks like a date
    key: [(tag, pattern) for tag, pattern in each if tag != "tag:yaml.org,2002:timestamp"]
    for key, each in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def template_of(body: str) -> dict[str, Any]:
    """Raises `ValidationError` for what is no template."""
    try:
        found = yaml.load(body, Loader=_Loader)  # noqa: S506 - a safe loader
    except yaml.YAMLError:
        raise ValidationError("Template format error: YAML not well-formed.") from None
    if not isinstance(found, dict) or not isinstance(found.get("Resources"), dict) or not found["Resources"]:
        raise ValidationError("Template format error: At least one Resources member must be defined.")
    known = {*found["Resources"], *(found.get("Parameters") or {}), *(found.get("Conditions") or {})}
    for part in ("Resources", "Outputs"):
        absent = sorted(set().union(*map(needs, (found.get(part) or {}).values())) - known)
        if absent:
            raise ValidationError(
                f"Template format error: Unresolved resource dependencies [{', '.join(absent)}] in the {part} block of "
                "the template"
            )
    return found


def capabilities_of(template: Mapping[str, Any]) -> list[str]:
    """What whoever makes a stack of it has to say that he knows."""
    kinds = [each["Type"] for each in template["Resources"].values()]
    return ["CAPABILITY_IAM"] if any(kind.startswith("AWS::IAM::") for kind in kinds) else []


def values_of(template: Mapping[str, Any], told: Mapping[str, str]) -> dict[str, str]:
    """Every parameter with its value. `ValidationError` for one that is unknown, or has none."""
    slots = template.get("Parameters") or {}
    if unknown := sorted(set(told) - set(slots)):
        raise ValidationError(f"Parameters: [{', '.join(unknown)}] do not exist in the template")
    whole = {key: told.get(key, each.get("Default")) for key, each in slots.items()}
    if missing := sorted(key for key, value in whole.items() if value is None):
        raise ValidationError(f"Parameters: [{', '.join(missing)}] must have values")
    return {key: str(value) for key, value in whole.items()}


def needs(asked: Any) -> set[str]:
    """The names that a part of a template refers to."""
    found: set[str] = set()
    if isinstance(asked, dict):
        for key, value in asked.items():
            match key, value:
                case (("Ref" | "DependsOn" | "Condition"), str()):
                    found.add(value)
                case "Fn::GetAtt", [str(name), *_]:
                    found.add(name)
                case "Fn::If", [str(name), *others]:
                    found |= {name, *needs(others)}
                case "Fn::Sub", str():
                    found |= {name.split(".")[0] for literal, name in _IN_TEXT.findall(value) if not literal}
                case "DependsOn", list():
                    found |= set(value)
                case _:
                    found |= needs(value)
    elif isinstance(asked, list):
        for each in asked:
            found |= needs(each)
    return {name for name in found if not name.startswith("AWS::")}


def in_order(resources: Mapping[str, Any]) -> list[str]:
    """Each after those that it needs."""
    made: list[str] = []

    def make(name: str) -> None:
        if name not in made and name in resources:
            for other in sorted(needs(resources[name])):
                make(other)
            made.append(name)

    for name in resources:
        make(name)
    return made


class Answers:
    """What the functions of a template come to. `ref` and `attribute` tell of the resources that are there already."""

    def __init__(
        self,
        template: Mapping[str, Any],
        values: Mapping[str, str],
        *,
        ref: Callable[[str], Any],
        attribute: Callable[[str, str], Any],
    ) -> None:
        self._conditions = template.get("Conditions") or {}
        slots = template.get("Parameters") or {}
        self._values = {key: _typed(slots[key]["Type"], value) for key, value in values.items()}
        self._ref, self._attribute = ref, attribute

    def holds(self, condition: str) -> bool:
        return bool(self.of(self._conditions[condition]))

    def of(self, asked: Any) -> Any:
        """The value of it, with nothing in the place of what is AWS::NoValue."""
        if isinstance(asked, list):
            return [value for value in map(self.of, asked) if value is not None]
        if not isinstance(asked, dict):
            return asked
        if len(asked) == 1:
            ((name, told),) = asked.items()
            if name in ("Ref", "Condition") or name.startswith("Fn::"):
                return self._function(name.removeprefix("Fn::"), told)
        return {key: value for key, value in ((k, self.of(v)) for k, v in asked.items()) if value is not None}

    def _function(self, name: str, told: Any) -> Any:
        match name, told:
            case "Ref", str():
                return self._named(told)
            case "Condition", str():
                return self.holds(told)
            case "GetAtt", [thing, attribute]:
                return self._attribute(thing, attribute)
            case "If", [condition, yes, no]:
                return self.of(yes if self.holds(condition) else no)
            case "Sub", str():
                return _IN_TEXT.sub(lambda found: self._in_text(*found.groups()), told)
            case "Join", [between, parts]:
                return str(between).join(map(str, self.of(parts)))
            case "Select", [number, parts]:
                return self.of(parts)[int(number)]
            case "Split", [between, text]:
                return str(self.of(text)).split(between)
            case "Base64", _:
                return base64.b64encode(str(self.of(told)).encode()).decode()
            case "Equals", [one, other]:
                return str(self.of(one)) == str(self.of(other))
            case "Not", [one]:
                return not self.of(one)
            case "And", list():
                return all(map(self.of, told))
            case "Or", list():
                return any(map(self.of, told))
        raise ValidationError(f"Template error: this cloud does not know Fn::{name}")

    def _named(self, name: str) -> Any:
        if name == "AWS::NoValue":
            return None
        return self._values[name] if name in self._values else self._ref(name)

    def _in_text(self, literal: str, name: str) -> str:
        if literal:
            return f"${{{name}}}"
        thing, _, attribute = name.partition(".")
        return str(self._attribute(thing, attribute) if attribute else self._named(name))


def _typed(kind: str, value: str) -> Any:
    if kind.startswith(("List<", "CommaDelimitedList")):
        return value.split(",")
    return (float(value) if "." in value else int(value)) if kind == "Number" else value


def names(parts: Sequence[str]) -> str:
    """As CloudFormation's messages list them."""
    return f"[{', '.join(sorted(parts))}]"
