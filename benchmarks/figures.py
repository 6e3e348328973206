"""What one measurement found, and how a table of them reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from benchmarks.machine import Load

ROLES: Mapping[str, tuple[str, ...]] = {
    "compute": ("servers", "images", "inventory", "ensure_image", "ensure_server", "stop", "start", "terminate"),
    "guest": ("facts",),
    "traffic": ("members", "proven", "idle", "add", "remove"),
    "probe": ("probe",),
}
OURS, BARE = "Changeover", "Celery chain, six empty tasks"


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Of one candidate at one size. `limit`: seconds that the provider and the in-flight limit alone take; None where
    nothing waits. `cpu`: seconds by process; `memory`: MiB at the peak by process. `commands`: Redis commands of
    (records, broker and results), and `scripts` how many of the records' were sent as a script. `held`: most
    unacknowledged messages of steps and busy slots while everything only waited, `samples` how often that was looked
    at, None where it was not; `unacked` and `busy` the most ever."""

    candidate: str
    servers: int
    seconds: float
    limit: float | None
    cpu: Mapping[str, float]
    memory: Mapping[str, float]
    commands: tuple[int, int] = (0, 0)
    scripts: int = 0
    calls: Mapping[str, int] = field(default_factory=dict)
    unacked: int = 0
    busy: int = 0
    held: tuple[int, int] | None = None
    looking: tuple[int, int] = (0, 0)
    samples: int = 0

    @property
    def cpu_each(self) -> float:
        """Milliseconds a server of those who work and coordinate; Valkey's own is beside it, that of a fake cloud in a
        process of its own is nobody's."""
        return self.cpu_of(*(name for name in self.cpu if name not in ("valkey", "cloud")))

    def cpu_of(self, *names: str) -> float:
        """Milliseconds a server of these processes."""
        return 1000 * sum(self.cpu.get(name, 0.0) for name in names) / self.servers

    @property
    def over(self) -> float | None:
        return None if self.limit is None else self.seconds / self.limit

    def calls_each(self, role: str = "") -> float:
        return sum(n for name, n in self.calls.items() if not role or name in ROLES[role]) / self.servers


HEADS = (
    "candidate",
    "makespan s",
    "/ limit",
    "CPU ms",
    "worker",
    "sender",
    "x bare",
    "Valkey ms",
    "commands: broker",
    "records",
    "(scripts)",
    "calls",
    "MiB: worker",
    "sender",
    "Valkey",
    "held waiting: msgs",
    "slots",
    "ever: msgs",
    "slots ",
)


def report(found: Sequence[Figures], load: Load) -> str:
    """Tables of one size: the costs a server, and whom the calls went to."""
    if not found:
        return ""
    servers = found[0].servers
    bare = next((each.cpu_each for each in found if each.candidate == BARE), None)
    limit = replace(load, servers=servers).limit
    title = f"\n### {servers} servers: the limit is {limit:g} s, I + R alone {load.image + load.ready:g} s\n"
    costs = table(HEADS, [_row(each, bare) for each in found])
    calling = [each for each in found if sum(each.calls.values())]
    heads = ("provider calls a server", *ROLES, "all")
    calls = table(
        heads,
        [
            (each.candidate, *(f"{each.calls_each(role):.2f}" for role in ROLES), f"{each.calls_each():.2f}")
            for each in calling
        ],
    )
    named = "\n".join(
        f"{each.candidate}: "
        + ", ".join(f"{name} {n / each.servers:.2f}" for name, n in sorted(each.calls.items()) if n)
        for each in calling
    )
    return f"{title}\n{costs}\n\n{calls}\n\n{named}" if calling else f"{title}\n{costs}"


def _row(each: Figures, bare: float | None) -> tuple[str, ...]:
    sender = next((each.memory[name] for name in ("coordinator", "feeder") if name in each.memory), None)
    worker = each.memory.get("worker", each.memory.get("script"))
    n = each.servers
    redis = "valkey" in each.cpu
    return (
        each.candidate,
        f"{each.seconds:.1f}",
        _or(each.over, ".2f"),
        f"{each.cpu_each:.1f}",
        _or(each.cpu_of("worker", "script"), ".1f"),
        _or(each.cpu_of("coordinator", "feeder") if redis else None, ".1f"),
        _or(each.cpu_each / bare if bare else None, ".2f"),
        _or(1000 * each.cpu["valkey"] / n if redis else None, ".1f"),
        _or(each.commands[1] / n if redis else None, ".0f"),
        _or(each.commands[0] / n if redis else None, ".0f"),
        _or(each.scripts / n if redis else None, ".1f"),
        f"{each.calls_each():.2f}",
        _or(worker, ".0f"),
        _or(sender, ".0f"),
        _or(each.memory.get("valkey"), ".0f"),
        _or(each.held[0] if each.held else None, "d"),
        _or(each.held[1] if each.held else None, "d"),
        _or(each.unacked if redis else None, "d"),
        _or(each.busy if redis else None, "d"),
    )


def _or(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def verdicts(found: Sequence[Figures]) -> str:
    """What was to be reached, and what was measured: never rounded in our favour."""
    lines = []
    for ours in (each for each in found if each.candidate.startswith(OURS)):
        bare = next((each for each in found if each.candidate == BARE and each.servers == ours.servers), None)
        held = ours.held or (0, 0)
        told = [
            _verdict("makespan at most 1.10 times the limit", ours.over or 0.0, 1.10, _MAKESPAN),
            _verdict("provider calls of compute at most 4 a server", ours.calls_each("compute"), 4, _COMPUTE),
            _verdict("provider calls of all roles at most 4 a server", ours.calls_each(), 4, _CALLS),
            _verdict("messages held while everything waits: none", held[0], 0, _HELD),
            _verdict("worker slots held while everything waits: none", held[1], 0, _HELD),
        ]
        if bare is not None:
            told.insert(1, _verdict("CPU at most 1.5 times the bare chain", ours.cpu_each / bare.cpu_each, 1.5, _CPU))
        seen = (
            f"looked at {ours.samples} times while everything waited; looks in progress then: {ours.looking[0]} at most"
        )
        lines += [f"{ours.candidate}, {ours.servers} servers ({seen})", *told]
    return "\n".join(lines)


# Why a figure may not be reached, and what would help next.
_MAKESPAN = (
    "those that are ready at the same time wait for each other's CPU (CPU ms, above; a process has one core at most); "
    "each waits for others with whom to share a call; and a poll of 0.5 s is waited for twice. Next: more cores with "
    "a worker process each, and calls that are shared without holding a thread"
)
_CPU = (
    "a server takes seven messages of steps and a share of a look, the bare chain six; two more chains are published "
    "for each; beside that come the journal's scripts. Next: looks and a coordinator that read only what has changed"
)
_COMPUTE = (
    "what carries our mark is listed when B is made, and B is asked after once more right before users are sent to it: "
    "one call for all that come to it within a tenth of a second. Next: that look by the observer, for all at once"
)
_CALLS = (
    "image, server and smoke test are each server's own. The rest (looks; B in, B open, A draining, A out; A stopped) "
    "is asked for all threads that come together; two looks a second go to those that wait, however few they are"
)
_HELD = "something was held: this is a fault"


def _verdict(what: str, measured: float, wanted: float, why: str) -> str:
    if measured <= wanted:
        return f"  reached: {what}: {measured:.3g}"
    return f"  NOT REACHED: {what}: {measured:.3g}\n    {why}."


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """As Markdown, so that it can be copied to a page as it is."""
    widths = [max(len(row[i]) for row in (heads, *rows)) for i in range(len(heads))]

    def line(cells: Sequence[str]) -> str:
        sized = zip(cells, widths, strict=True)
        return "| " + " | ".join(c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(sized)) + " |"

    rule = "|" + "|".join("-" * (w + 1) + (":" if i else "-") for i, w in enumerate(widths)) + "|"
    return "\n".join([line(heads), rule, *(line(row) for row in rows)])
