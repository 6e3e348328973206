"""A look inside servers that are stacks of CloudFormation: inside their instances."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from providers import Finding
from providers.clients import iam
from providers.clients.cloudformation import NAME, stacks_of
from providers.guest import Facts
from providers.guest.aws import AwsGuest
from providers.guest.quiesce import Hook
from providers.rights import Rights


class CloudFormationGuest(AwsGuest):
    """As `AwsGuest`; an id is that of an instance, or the name of a stack. One that is not complete is left out."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        super().__init__(settings)
        self._stacks = stacks_of(self._aws)

    def facts(self, ids: Sequence[str], *, paths: Sequence[str]) -> Mapping[str, Facts]:
        inside = self._inside(ids)
        found = super().facts(list(inside), paths=paths)
        return {inside[id]: replace(facts, server=inside[id]) for id, facts in found.items()}

    def quiesce(self, id: str, key: str, /, *, hook: Hook, by: float) -> None:
        super().quiesce(self._instance(id), key, hook=hook, by=by)

    def release(self, id: str, key: str, /, *, hook: Hook) -> bool:
        return super().release(self._instance(id), key, hook=hook)

    def examine(self, ids: Sequence[str]) -> Sequence[Finding]:
        return super().examine(list(self._inside(ids)))

    def rights(self, *, fleet: str) -> Sequence[Rights]:
        look = iam.rights(self._aws.place, [iam.allow("Look", ["cloudformation:DescribeStacks"])])
        return [*super().rights(fleet=fleet), *look]

    def _instance(self, id: str) -> str:
        return next(iter(self._inside([id])), id)

    def _inside(self, ids: Sequence[str]) -> Mapping[str, str]:
        """Instances, and by what id each was asked for."""
        names = [id for id in ids if NAME.fullmatch(id)]
        plain = {id: id for id in ids if id not in names}
        return plain | {instance: name for name, instance in self._stacks.instances(names).items()}
