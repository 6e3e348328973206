"""`python -m tests.chaos --seed N`: three parts under the same users; ends with 1 if a promise was broken."""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis

from orchestrator import operations
from orchestrator.domain.steps import STEPS
from orchestrator.domain.upgrade import Upgrade
from orchestrator.errors import ChangeoverError
from orchestrator.store import Row
from tests.chaos.stage import LEASE, Control, Rollout, Stage, until
from tests.checker.check import check
from tests.support.local_host import processes

Act = Callable[[], None]
FULL = 100  # servers from which on it is the whole of it
PATIENCE = 600.0, 12.0  # seconds for one rollout, and for each of its servers: on a machine that has more to do
CHECK = "inter 1s fastinter 200ms rise 2 fall 2"  # HAProxy's, of each server: a hundred more often are half a core
FILLED = 4.0  # seconds for which Redis is full


@dataclass(frozen=True, kw_only=True)
class Amounts:
    """How much of what. `kills` counts SIGKILLs of workers and coordinators, `outage` is in seconds."""

    servers: int
    bad: int
    dead: int
    kills: int
    stops: int
    redis: int
    cloud: int
    outage: float
    rate: int
    in_flight: int
    requests: int

    @classmethod
    def of(cls, servers: int) -> Amounts:
        if servers >= FULL:
            return cls(
                servers=servers,
                bad=16,
                dead=8,
                kills=32,
                stops=5,
                redis=3,
                cloud=20,
                outage=120.0,
                rate=200,
                in_flight=5,
                requests=100_000,
            )
        return cls(
            servers=servers,
            bad=4,
            dead=2,
            kills=max(4, servers // 3),
            stops=1,
            redis=1,
            cloud=4,
            outage=8.0,
            rate=60,
            in_flight=4,
            requests=60 * 40,
        )


@dataclass
class Chaos:
    """What strikes, and what it has struck. All choices are the seed's."""

    stage: Stage
    control: Control
    dice: random.Random
    amounts: Amounts
    struck: Counter[str] = field(default_factory=Counter)
    later: list[tuple[float, Act]] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)

    def say(self, what: str) -> None:
        print(f"{time.monotonic() - self.began:7.1f}  {what}", flush=True)

    # -- faults -----------------------------------------------------------------------------------------------------

    def plan(self) -> list[str]:
        a = self.amounts
        coordinators = max(1, a.kills // 8)
        faults = ["kill worker"] * (a.kills - coordinators) + ["kill coordinator"] * coordinators
        faults += ["stop worker"] * a.stops + ["kill redis"] * a.redis + ["flush broker", "fill redis"]
        faults += [self.dice.choice(["cloud lost", "cloud unavailable", "cloud slow"]) for _ in range(a.cloud)]
        self.dice.shuffle(faults)
        return faults

    def strike(self, fault: str, rows: Sequence[Row]) -> bool:
        """Whether it could be done now."""
        what, _, whom = fault.partition(" ")
        match fault:
            case "kill worker" | "stop worker":
                return self._signal_worker(what, rows)
            case "kill coordinator" | "kill redis":
                pid = self.control.pids().get("valkey" if whom == "redis" else whom)
                if pid is None:
                    return False
                os.kill(pid, signal.SIGKILL)
            case "flush broker":
                self.control.redis(1).flushdb()
            case "fill redis":
                held = self.control.redis(0)
                held.config_set("maxmemory", int(held.info("memory")["used_memory"]) + 50_000)
                self.after(FILLED, lambda: held.config_set("maxmemory", 0))
            case "cloud lost" | "cloud unavailable" | "cloud slow":
                self.stage.wire.strike(whom)  # type: ignore[arg-type] # one of its faults
                self.say(fault)
                return True  # it counts when a call meets it
        self.struck[fault] += 1
        self.say(fault)
        return True

    def _signal_worker(self, what: str, rows: Sequence[Row]) -> bool:
        """Rather one that has a server in hand."""
        running = {name: pid for name, pid in self.control.pids().items() if name.startswith("w")}
        busy = sorted({row.owner.partition("/")[0] for row in rows if row.owner} & set(running))
        if not running or (not busy and self.dice.random() < 0.8):
            return False
        name = self.dice.choice(busy or sorted(running))
        pid = running[name]
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL if what == "kill" else signal.SIGSTOP)
        if what == "stop":
            self.after(LEASE + self.dice.uniform(1.5, 5), lambda: _continue(pid, self.control, name))
        self.struck[f"{what} worker"] += 1
        at = ", ".join(
            f"{row.upgrade.server} {row.upgrade.direction} {row.upgrade.step}"
            for row in rows
            if row.owner.startswith(f"{name}/")
        )
        self.say(f"{what} worker {name}: {at or 'idle'}")
        return True

    def after(self, seconds: float, act: Act) -> None:
        self.later.append((time.monotonic() + seconds, act))

    def now_due(self) -> None:
        for due in [entry for entry in self.later if entry[0] <= time.monotonic()]:
            try:
                due[1]()
            except redis.exceptions.RedisError:
                continue  # it is dead just now: again
            self.later.remove(due)

    # -- one rollout ------------------------------------------------------------------------------------------------

    def watch(self, rollout: Rollout, *, faults: Sequence[str] = (), each: Callable[[Rollout], None], end: str) -> None:
        """Until it has ended, or is closed; the faults are spread over its way."""
        waiting, total, done_by = (
            list(faults),
            len(faults),
            time.monotonic() + PATIENCE[0] + PATIENCE[1] * len(rollout.names),
        )
        shown = ""
        while True:
            self.control.step(0.05)
            self.now_due()
            each(rollout)
            view = rollout.view()
            if view is None:
                continue
            progress = sum(_part(u) for u in view.upgrades) / len(view.upgrades)
            if waiting and progress >= 0.92 * (total - len(waiting)) / total:
                with suppress(ChangeoverError, redis.exceptions.RedisError, OSError):
                    if self.strike(waiting[0], self.control.store.rows(rollout.id)):
                        waiting.pop(0)
            self._as_a_person(rollout, view)
            states = Counter(u.state if u.terminal or u.state == "pending" else "under way" for u in view.upgrades)
            now = f"{view.rollout.state}: " + ", ".join(f"{n} {state}" for state, n in sorted(states.items()))
            if now != shown:
                shown = now
                self.say(now)
            if view.rollout.closed if end == "closed" else view.rollout.ended:
                break
            if time.monotonic() > done_by:
                open_now = [f"{u.server} {u.state} {u.direction} {u.step}: {u.why}" for u in view.upgrades]
                raise AssertionError(f"not {end} in time: {view.rollout}; {open_now}")
        while self.later:
            self.control.step(0.05)
            self.now_due()
        if waiting:
            raise AssertionError(f"it ended before {waiting} could strike")

    def _as_a_person(self, rollout: Rollout, view: operations.View) -> None:
        """Who is asked says: go on."""
        with suppress(ChangeoverError):
            if view.rollout.state == "paused" and not any(
                u.direction == "undo" and not u.terminal for u in view.upgrades
            ):
                self.say(f"resumed by a person; it had said: {view.rollout.why}")
                self.struck["paused, and resumed by a person"] += 1
                operations.resume(self.control.store, rollout.id, actor="a person")
            for u in view.held:
                self.say(f"{u.server} retried by a person; it had said: {u.why}")
                self.struck["held, and retried by a person"] += 1
                operations.retry(self.control.store, rollout.id, [u.server], actor="a person")


def _part(u: Upgrade) -> float:
    """How far that server has come, from 0 to 1."""
    if u.terminal:
        return 1.0
    return 0.0 if u.state == "pending" else 0.9 * STEPS.index(u.step) / len(STEPS)


def _continue(pid: int, control: Control, name: str) -> None:
    if control.pids().get(name) == pid:
        os.kill(pid, signal.SIGCONT)


# -- the parts --------------------------------------------------------------------------------------------------------


def storm(chaos: Chaos, names: Sequence[str]) -> list[str]:
    """Everything strikes while a fleet is replaced, until its old servers are gone."""
    policy = {"soak": "2s", "bake": "0s", "max_in_flight": chaos.amounts.in_flight, "budget": {"before_swap": 5}}
    policy["drain"] = {"deadline": "30s", "quiet": "500ms"}
    rollout = Rollout(stage=chaos.stage, control=chaos.control, names=names, policy={**policy, "retain": "15s"})
    rollout.apply()
    chaos.watch(rollout, faults=chaos.plan(), each=lambda _r: None, end="closed")
    return judge(rollout, dict.fromkeys(names, "upgraded"))


def bad_ones(chaos: Chaos, names: Sequence[str]) -> list[str]:
    """A quarter of the new servers never gets ready, a quarter fails its smoke test, a quarter falls sick in its soak
    and dies."""
    quarter = len(names) // 4
    shuffled = chaos.dice.sample(list(names), len(names))
    never, smoke, dying = (shuffled[n * quarter : (n + 1) * quarter] for n in range(3))
    for name in never:
        chaos.stage.never_ready(name)
    for name in smoke:
        chaos.stage.fails_smoke(name)
    chaos.say(f"never ready: {never}; fail their smoke test: {smoke}; die in their soak: {dying}")
    policy: dict[str, Any] = {"soak": "8s", "max_in_flight": 6, "budget": {"before_swap": 100}, "bake": "0s"}
    # One that falls sick before its swap is proven is waited for as long as any that is not there yet.
    policy |= {"deadlines": {"poll_readiness": "25s", "swap": "40s"}, "drain": {"deadline": "30s", "quiet": "500ms"}}
    rollout = Rollout(stage=chaos.stage, control=chaos.control, names=names, policy={**policy, "retain": "24h"})
    rollout.apply()
    sick: set[str] = set()

    def each(r: Rollout) -> None:
        """As soon as users are sent to one that is to die, its check begins to fail."""
        serving = {str(m["address"]) for m in chaos.stage.sampler.now().values() if m["state"] == "serving"}
        for id, server in chaos.stage.look().items():
            name = server["tags"].get("changeover:server")
            if name in dying and name not in sick and server["address"] in serving and id != chaos.stage.ids[name]:
                sick.add(name)
                chaos.struck["new server dies in its soak"] += 1
                chaos.say(f"the new server of {name} falls sick")
                (chaos.stage.root(id) / "BROKEN").touch()
                r.incidents.append({"at": time.time(), "kind": "server lost", "id": id})
                # Its own users have their answers by then: what dies with a request in hand fails that request.
                chaos.after(9.0, lambda pid=server["pid"]: _kill(pid))  # type: ignore[misc] # a number

    chaos.watch(rollout, each=_every(0.2, each), end="ended")
    wanted = dict.fromkeys((*never, *smoke), "failed") | dict.fromkeys(dying, "rolled_back")
    chaos.struck["new server never ready"] += len(never)
    chaos.struck["new server fails its smoke test"] += len(smoke)
    return judge(rollout, {name: wanted.get(name, "upgraded") for name in names})


def dead(chaos: Chaos, names: Sequence[str]) -> list[str]:
    """Nothing of the control plane lives for a while, in the middle of a swap."""
    policy = {"soak": "3s", "bake": "0s", "max_in_flight": 4, "drain": {"deadline": "30s", "quiet": "500ms"}}
    rollout = Rollout(stage=chaos.stage, control=chaos.control, names=names, policy={**policy, "retain": "24h"})
    rollout.apply()

    def swapping() -> bool:
        view = rollout.view()
        return view is not None and any(u.step == "swap" and u.has_begun("swap") for u in view.upgrades)

    until(chaos.control, swapping, "a swap", seconds=120)
    began = time.time()
    chaos.control.kill_all()
    chaos.struck["whole control plane killed"] += 1
    chaos.say(f"the whole control plane is dead, for {chaos.amounts.outage:g} s")
    time.sleep(chaos.amounts.outage)
    rollout.incidents.append({"at": began, "kind": "control plane down", "until": time.time()})
    chaos.control.start()
    chaos.say("it is back")
    chaos.watch(rollout, each=lambda _r: None, end="ended")
    return judge(rollout, dict.fromkeys(names, "upgraded"))


def _every(seconds: float, act: Callable[[Rollout], None]) -> Callable[[Rollout], None]:
    last = 0.0

    def each(rollout: Rollout) -> None:
        nonlocal last
        if time.monotonic() - last >= seconds:
            last = time.monotonic()
            act(rollout)

    return each


def _kill(pid: int) -> None:
    if pid:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def judge(rollout: Rollout, wanted: Mapping[str, str]) -> list[str]:
    """What is wrong with its end, by our own eyes and by the checker's."""
    stage, wrong = rollout.stage, []
    # What was stopped or terminated has its grace.
    until(
        rollout.control,
        lambda: "stopping" not in {s["state"] for s in stage.look().values()},
        "all stopped",
        seconds=60,
    )
    rollout.write()
    upgrades = {row.upgrade.server: row.upgrade for row in rollout.control.store.rows(rollout.id)}
    for name, state in wanted.items():
        u = upgrades[name]
        if u.state != state:
            wrong.append(f"{name} ended {u.state} and not {state}: {u.why or u.cause}")
    ours = [s for s in stage.look().values() if s["tags"].get("changeover:rollout") == rollout.id]
    ours = [s for s in ours if s["tags"].get("changeover:managed") == "1"]
    left = Counter(s["tags"].get("changeover:server") for s in ours)
    expected = Counter({name: 1 for name, u in upgrades.items() if u.state == "upgraded"})
    if left != expected:
        wrong.append(f"orphans or losses: {left - expected} too many, {expected - left} missing")
    return wrong + [str(violation) for violation in check(rollout.folder)]


# -- all of it --------------------------------------------------------------------------------------------------------


def play(seed: int, amounts: Amounts, out: Path) -> int:
    short = Path(tempfile.mkdtemp(prefix="co-", dir="/tmp"))
    total = amounts.servers + amounts.bad + amounts.dead
    stage = Stage(short=short, out=out, pools={"web": total}, rate=amounts.rate, check=CHECK)
    control = Control(out, workers=4)
    chaos = Chaos(stage=stage, control=control, dice=random.Random(seed), amounts=amounts)
    wrong: list[str] = []
    try:
        chaos.say(f"seed {seed}: {total} servers; what is kept is in {out}")
        stage.build()
        control.start()
        stage.send_users()
        chaos.say(f"ready, {amounts.rate} requests a second")
        names = list(stage.names)
        storming, rest = names[: amounts.servers], names[amounts.servers :]
        for part, some in ((storm, storming), (bad_ones, rest[: amounts.bad]), (dead, rest[amounts.bad :])):
            chaos.say(f"--- {part.__name__}: {len(some)} servers")
            found = part(chaos, some)
            chaos.say(f"--- {part.__name__}: {len(found)} violations")
            wrong += [f"{part.__name__}: {each}" for each in found]
        while stage.users().get("requests", 0) < amounts.requests:
            control.step(0.2)
        seen, held = stage.dismiss_users()
        if seen["failed"]:
            wrong.append(f"users: {seen['failed']} of {seen['requests']} requests failed: {seen['failures'][:5]}")
        if held.stored != seen["orders"]["sent"] or held.repeated:
            wrong.append(f"orders: {seen['orders']['sent']} sent, {held.stored} stored, {held.repeated} twice")
        chaos.say(
            f"users: {seen['requests']} requests, {seen['failed']} failed; {held.stored} orders, {held.repeated} twice"
        )
    except (AssertionError, ChangeoverError) as error:
        wrong.append(f"{type(error).__name__}: {error}")
    finally:
        control.kill_all()
        stage.clear()
        for database in out.glob("*.db*"):
            database.unlink()
    left = processes.marked(processes.HOST_MARK, os.path.realpath(stage.host.folder))
    if left:
        wrong.append(f"processes are left: {left}")
    chaos.struck.update({f"cloud {kind}": n for kind, n in stage.wire.struck.items()})
    print("\nstruck: " + ", ".join(f"{n} x {what}" for what, n in sorted(chaos.struck.items())))
    for each in wrong[:40]:
        print(f"VIOLATION {each}")
    print(f"seed {seed}: {len(wrong)} violations, {time.monotonic() - chaos.began:.0f} s")
    return 1 if wrong else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--servers", type=int, default=FULL, help="of the first part; fewer strike less, too")
    parser.add_argument(
        "--out", type=Path, help="a folder for evidence and logs, kept; else one that is removed if all is well"
    )
    asked = parser.parse_args()
    for which in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(which, signal.default_int_handler)
    out = asked.out or Path(tempfile.mkdtemp(prefix=f"chaos-{asked.seed}-"))
    out.mkdir(parents=True, exist_ok=True)
    code = play(asked.seed, Amounts.of(asked.servers), out)
    if asked.out is None and code == 0:
        shutil.rmtree(out)
    else:
        print(f"kept: {out}")
    return code


if __name__ == "__main__":
    sys.exit(main())
