"""A look inside EC2 instances through the agent of Systems Manager: one read-only script, many servers a call."""

from __future__ import annotations

import shlex
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from providers import Caps, Finding
from providers.clients import iam
from providers.clients.aws import SETTINGS, aws
from providers.clients.rounds import Rounds
from providers.errors import NotFound, ProviderError, Transient
from providers.guest import Facts, PathFacts
from providers.guest.quiesce import Hook, quiesce_script, release_script, word_of
from providers.rights import Rights

POLL = 5.0  # seconds between looks: an agent takes about one to answer, and SendCommand is limited
BATCH = 50  # ids that one SendCommand takes
LATELY = 600.0  # seconds for which an agent that was online is taken to be: SendCommand says if it is not
MANY = 10_000  # agents that are remembered
PATIENCE = 8.0  # seconds in which an agent that is online has usually answered; who has not is asked again later
ORDER_SECONDS = 30  # for a whole quiesce script; its watchdog is no part of it
END = "end-of-facts"
DOCUMENT = "AWS-RunShellScript"
PAUSE, LONGEST = 0.25, 2.0  # seconds until the first look at the answers; twice as long each time, up to so many
GOING = ("Pending", "InProgress", "Delayed", "Cancelling")
KINDS = {"regular file": "file", "regular empty file": "file", "directory": "directory", "symbolic link": "link"}

# POSIX sh, and of other programs only what every Linux has. A fact a line, its words between tabs. It writes nothing.
# Connections are open in all states but those in which nothing can be on its way any more (include/net/tcp_states.h).
SCRIPT = r"""
exec 2>/dev/null
LC_ALL=C; export LC_ALL; t='	'
printf 'boot\t%s\n' "$(cat /proc/sys/kernel/random/boot_id)"
printf 'clock\t%s\n' "$(date +%s.%N)"
awk '
  /^MemTotal:/ {t = $2} /^MemAvailable:/ {a = $2}
  END {printf "memory\t%.0f\t%.0f\n", t * 1024, (t - a) * 1024}' /proc/meminfo
df -PkT | awk '
  $1 ~ /^\/dev\// && $2 !~ /^(squashfs|iso9660)$/ && !seen[$1]++ {t += $3; u += $4}
  END {printf "disk\t%.0f\t%.0f\n", t * 1024, u * 1024}'
awk '
  {n = split($2, p, ":")}
  $4 == "0A" {up[p[n]] = 1}
  $4 ~ /^(01|03|04|05|08|09|0B)$/ {open[p[n]]++}
  END {for (port in up) print "listen\t" port "\t" open[port] + 0}' /proc/net/tcp /proc/net/tcp6
if command -v systemctl >/dev/null; then
  systemctl list-units --state=failed --plain --no-legend --no-pager | awk '{print "failed\t" $1}'
fi
look() { stat -c "path${t}$1${t}%F${t}%a${t}%U${t}%G" -- "$2" || printf 'path\t%s\tmissing\n' "$1"; }
"""


class AwsGuest:
    """`settings` are those of `providers.clients.aws`. Paths that do not begin with / are looked at from /.

    `disk_total` and `disk_used` are of all file systems on the server's volumes together; swap and volumes without
    one do not count. The servers need the agent and the role AmazonSSMManagedInstanceCore.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._aws = aws({name: value for name, value in settings.items() if name in SETTINGS})
        self._lock = threading.Lock()
        self._lately: dict[str, float] = {}  # whose agent was online, and until when that is believed
        self._rounds: dict[tuple[str, ...], Rounds[str, Facts | None]] = {}  # by the paths that are looked at

    @property
    def caps(self) -> Caps:
        return Caps(batch=BATCH, poll=POLL)

    def facts(self, ids: Sequence[str], *, paths: Sequence[str]) -> Mapping[str, Facts]:
        wanted = [id for id in dict.fromkeys(ids) if id.startswith("i-")]
        if len(wanted) != 1:
            return self._facts(wanted, paths)
        with self._lock:
            together = self._rounds.setdefault(tuple(paths), Rounds(lambda some: self._each(some, paths)))
        return {id: facts for id, facts in together(wanted).items() if facts is not None}

    def _each(self, ids: Collection[str], paths: Sequence[str]) -> Mapping[str, Facts | None]:
        """What threads ask of one server each at the same moment is one command."""
        found = self._facts(sorted(ids), paths)
        return {id: found.get(id) for id in ids}

    def _facts(self, wanted: Sequence[str], paths: Sequence[str]) -> Mapping[str, Facts]:
        found: dict[str, Facts] = {}
        for start in range(0, len(wanted), BATCH):
            some = wanted[start : start + BATCH]
            now = time.monotonic()
            if all(self._lately.get(id, 0.0) > now for id in some) and (told := self._ask(some, paths)) is not None:
                found |= told
            elif online := self._online(some):
                found |= self._ask(online, paths) or {}
        return found

    def quiesce(self, id: str, key: str, /, *, hook: Hook, by: float) -> None:
        self._order(id, quiesce_script(key, hook, by=by))

    def release(self, id: str, key: str, /, *, hook: Hook) -> bool:
        return self._order(id, release_script(key, hook)) == "held"

    def _order(self, id: str, script: str) -> str:
        """What the script said, run on one server."""
        command = self._send([id], script, "changeover quiesces for an image", ORDER_SECONDS) if self._up(id) else None
        if command is None:
            raise Transient(f"the agent of Systems Manager on {id} does not answer", ambiguous=False)
        for _ in _looks():
            if over := [told for told in self._answers(command) if told["Status"] not in GOING]:
                return word_of(id, self._said(over[0]))
        raise Transient(f"{id} has not answered within {PATIENCE:g} s", ambiguous=True)

    def _up(self, id: str) -> bool:
        return id.startswith("i-") and bool(self._online([id]))

    def examine(self, ids: Sequence[str]) -> Sequence[Finding]:
        wanted = [id for id in dict.fromkeys(ids) if id.startswith("i-")]
        name = "agents of Systems Manager"
        told: dict[str, str] = {}
        try:
            for start in range(0, len(wanted), BATCH):
                some = wanted[start : start + BATCH]
                told |= {each["InstanceId"]: each["PingStatus"] for each in self._agents(some)}
        except ProviderError as error:
            return [Finding(name=name, ok=False, detail=str(error), fix="let these credentials ask for them")]
        silent = [f"{id} was {told[id]}" for id in wanted if told.get(id, "Online") != "Online"]
        strange = [id for id in wanted if id not in told]
        if not silent and not strange:
            return [Finding(name=name, ok=True, detail=f"{len(wanted)} are online")]
        never = [f"{len(strange)} never registered ({', '.join(strange[:5])})"] if strange else []
        fix = "install and start the agent, give the servers a role with AmazonSSMManagedInstanceCore, and a way to ssm"
        return [Finding(name=name, ok=False, detail="; ".join([*never, *silent[:5]]), fix=fix)]

    def rights(self, *, fleet: str) -> Sequence[Rights]:
        place = self._aws.place
        look = ["ssm:DescribeInstanceInformation", "ssm:GetCommandInvocation", "ssm:ListCommandInvocations"]
        send, servers = ["ssm:SendCommand"], iam.arn(place, "ec2", "instance/*")
        return iam.rights(
            place,
            [
                iam.allow("Look", look),
                iam.allow("ChangeTheFleet", send, servers, StringEquals=iam.of_fleet(fleet)),
                iam.allow("OneDocument", send, iam.public(place, "ssm", f"document/{DOCUMENT}")),
            ],
        )

    def _online(self, ids: Sequence[str]) -> list[str]:
        """Those whose agent answers: SendCommand refuses all of them for one whose does not."""
        found = [each["InstanceId"] for each in self._agents(ids) if each["PingStatus"] == "Online"]
        if len(self._lately) > MANY:
            self._lately.clear()
        self._lately |= dict.fromkeys(found, time.monotonic() + LATELY)
        return found

    def _agents(self, ids: Sequence[str]) -> Iterator[Mapping[str, Any]]:
        """Of at most `BATCH`: who never had an agent is left out."""
        return self._aws.pages(
            "ssm",
            "describe_instance_information",
            "InstanceInformationList",
            Filters=[{"Key": "InstanceIds", "Values": list(ids)}],
            MaxResults=BATCH,
        )

    def _ask(self, ids: Sequence[str], paths: Sequence[str]) -> dict[str, Facts] | None:
        """None if the agent of one of them has gone away."""
        asked = time.time()
        command = self._send(ids, script(paths), "changeover reads facts", 20)
        if command is None:
            return None
        answers: dict[str, Facts] = {}
        over: set[str] = set()
        for _ in _looks():
            for told in self._answers(command):
                id = told["InstanceId"]
                if id in over or told["Status"] in GOING:
                    continue
                over.add(id)
                heard = time.time()
                if told["Status"] == "Success" and (output := self._output(command, told)):
                    answers[id] = read(id, output, paths, asked=asked, heard=heard)
            if len(over) == len(ids):
                break
        return answers

    def _send(self, ids: Sequence[str], script: str, comment: str, seconds: int) -> str | None:
        """The command's id; None if the agent of one of them has gone away."""
        try:
            sent = self._aws.write(
                "ssm",
                "send_command",
                DocumentName=DOCUMENT,
                InstanceIds=list(ids),
                Comment=comment,
                TimeoutSeconds=30,
                Parameters={"commands": script.splitlines(), "executionTimeout": [str(seconds)]},
            )
        except NotFound:
            return None
        return str(sent["Command"]["CommandId"])

    def _answers(self, command: str) -> Iterator[Mapping[str, Any]]:
        return self._aws.pages(
            "ssm", "list_command_invocations", "CommandInvocations", CommandId=command, Details=True, MaxResults=BATCH
        )

    @staticmethod
    def _said(told: Mapping[str, Any]) -> str:
        return "".join(str(plugin.get("Output", "")) for plugin in told.get("CommandPlugins") or ())

    def _output(self, command: str, told: Mapping[str, Any]) -> str:
        """What the script said; empty if it did not come to its end. A list of answers cuts each after 2,500
        characters, and a single one after 24,000 (API reference of Systems Manager, CommandPlugin and
        GetCommandInvocation)."""
        said = self._said(told)
        if said.rstrip().endswith(END):
            return said
        whole = self._aws.read("ssm", "get_command_invocation", CommandId=command, InstanceId=told["InstanceId"])
        said = str(whole.get("StandardOutputContent", ""))
        return said if said.rstrip().endswith(END) else ""


def _looks() -> Iterator[None]:
    """When an answer may have come: an agent takes a moment, and whoever has many to run takes longer."""
    end, pause = time.monotonic() + PATIENCE, PAUSE
    while time.monotonic() + pause <= end:
        time.sleep(pause)
        pause = min(2 * pause, LONGEST)
        yield


def script(paths: Sequence[str]) -> str:
    """The whole script. A path is quoted for the shell, and never part of a program."""
    looks = [f"look {number} {shlex.quote('/' + path.lstrip('/'))}" for number, path in enumerate(paths)]
    return SCRIPT + "\n".join([*looks, f"echo {END}"])


def read(id: str, output: str, paths: Sequence[str], *, asked: float, heard: float) -> Facts:
    """The facts that the script's output tells. What it does not tell of a path is missing."""
    rows: dict[str, list[list[str]]] = {}
    for line in output.splitlines():
        name, *words = line.split("\t")
        rows.setdefault(name, []).append(words)
    seen = {int(words[0]): words[1:] for words in rows.get("path", ()) if words and words[0].isdigit()}
    disk, memory = _first(rows, "disk", 2), _first(rows, "memory", 2)
    clock = float(_first(rows, "clock", 1)[0] or asked)
    ports = {int(words[0], 16): int(words[1]) for words in rows.get("listen", ()) if len(words) > 1}
    return Facts(
        server=id,
        boot=_first(rows, "boot", 1)[0],
        disk_total=int(disk[0] or 0),
        disk_used=int(disk[1] or 0),
        memory_total=int(memory[0] or 0),
        memory_used=int(memory[1] or 0),
        paths=tuple(_path(path, seen.get(number, ["missing"])) for number, path in enumerate(paths)),
        listening=tuple(sorted(ports)),
        connections={str(port): count for port, count in ports.items()},
        failed_units=tuple(words[0] for words in rows.get("failed", ()) if words),
        clock_offset=min(0.0, clock - asked) + max(0.0, clock - heard),
    )


def _first(rows: Mapping[str, list[list[str]]], name: str, least: int) -> list[str]:
    words = rows.get(name, [[]])[0]
    return [*words, *[""] * (least - len(words))]


def _path(path: str, words: Sequence[str]) -> PathFacts:
    kind, mode, owner, group = [*words, "", "", "", ""][:4]
    if kind == "missing":
        return PathFacts(path=path, kind="missing")
    return PathFacts(path=path, kind=KINDS.get(kind, "other"), mode=mode.zfill(4), owner=owner, group=group)
