"""A probe without a network: a registry of what each address answers, and of how often it was asked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, ClassVar

from providers.clients.fake_cloud import Remote
from providers.probe import Comparison, Expect, Outcome, Request, rules
from providers.probe.answer import Answer, judge, where
from providers.probe.compare import compare

Target = tuple[str, int]


@dataclass
class FakeSites:
    """What is there to be asked. Addresses that nobody set up refuse the connection, as a closed port does."""

    calls: Counter[Target] = field(default_factory=Counter)
    _answers: dict[Target, list[Answer]] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock)

    def answers(self, address: str, port: int, *answers: Answer) -> None:
        """From now on that address gives these answers in turn, and the last one ever after."""
        with self._lock:
            self._answers[address, port] = list(answers)

    def passes(self, address: str, port: int, body: str = "ok") -> None:
        self.answers(address, port, Answer(status=200, headers=(("content-type", "text/plain"),), body=body.encode()))

    def fails(self, address: str, port: int, *, status: int = 0) -> None:
        """It answers with that status, or with 0 refuses the connection."""
        self.answers(address, port, Answer(status=status, fault="" if status else "no connection: Connection refused"))

    def ask(self, target: Target) -> Answer:
        with self._lock:
            self.calls[target] += 1
            answers = self._answers.get(target)
            if not answers:
                return Answer(fault="no connection: Connection refused")
            return answers.pop(0) if len(answers) > 1 else answers[0]


class FakeProbe:
    """Judges and compares as the real one. `settings`: `ports` as there, and `sites`, the name of the registry: probes
    of the same name share one, so that a test can set up what a probe made elsewhere will find."""

    registry: ClassVar[dict[str, FakeSites]] = {}

    def __new__(cls, settings: Mapping[str, Any]) -> Any:
        return Remote("probe", settings) if "socket" in settings else super().__new__(cls)

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._ports = rules.ports(settings)
        self.sites = self.registry.setdefault(str(settings.get("sites", "default")), FakeSites())

    def check(self, address: str, port: int, request: Request, expect: Expect) -> Outcome:
        wanted = rules.wanted(expect)
        rules.site(request)
        target = rules.endpoint(address, port, self._ports)
        return judge(self.sites.ask(target).without(request.secrets), request, wanted, at=where(*target))

    def compare(
        self, old: tuple[str, int], new: tuple[str, int], request: Request, *, masks: tuple[str, ...]
    ) -> Comparison:
        patterns = rules.comparable(request, masks)
        rules.site(request)
        before, after = (rules.endpoint(*target, self._ports) for target in (old, new))
        first, other, second = (self.sites.ask(target).without(request.secrets) for target in (before, after, before))
        return compare(first, second, other, patterns, names=(where(*before), where(*after)))
