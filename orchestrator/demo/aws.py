"""The scene of `changeover demo --cloud aws`: the shop on twenty EC2 instances in two accounts of a simulated AWS."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, MutableMapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

from orchestrator.demo.surroundings import Surroundings, Tally
from orchestrator.errors import ChangeoverError, NotFound

ACCOUNTS: Mapping[str, int] = {"111111111111": 10, "222222222222": 10}
REGION = "eu-west-1"
PORT, USERS = 8080, 8090  # where the sites listen, and the balancers
DELAY = 8  # seconds that a target drains: longer than a user's longest request, 5 s
TIMINGS: Mapping[str, float] = {  # seconds
    "image": 1.5,
    "pending": 0.5,
    "checks": 2.0,
    "stopping": 1.0,
    "shutting_down": 1.0,
    "agent": 1.0,
    "lag": 0.3,
    "registering": 0.3,
    "health": 0.5,
    "propagation": 0.2,
}
# What an account may ask for here: calls at once, and a second. AWS' own limits are higher, and its fleets larger.
LIMITS: Mapping[str, tuple[float, float]] = {
    "ec2:Describe*": (12, 6),
    "ec2:RunInstances": (2, 1),
    "elbv2:*": (8, 4),
    "ssm:*": (6, 3),
}
FAULTS: Sequence[Mapping[str, Any]] = (
    {"rate": 0.03, "count": -1, "after": True, "drop": True},  # done, and the answer lost
    {"rate": 0.02, "count": -1, "code": "ServiceUnavailable", "http": 503},
)
PACKAGES = ("boto3", "flask", "moto", "simcloud")
# Nobody's: what the simulated AWS takes for an operator.
OURS = {
    "AWS_ACCESS_KEY_ID": "AKIAEXAMPLEEXAMPLE00",
    "AWS_SECRET_ACCESS_KEY": "example",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
}


def refuse_unless_installed() -> None:
    """Raises `NotFound` with what to install."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise NotFound(
            f"the simulated AWS needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed",
            traffic="nothing was started",
            next="pip install 'changeover[local,simcloud]'",
        )


def cut_off(environment: MutableMapping[str, str], endpoint: str) -> None:
    """Whoever gets this environment can reach one AWS only: that at this endpoint, with credentials that are nobody's.
    No key, profile, role or address of AWS that was in it is left, and no proxy."""
    proxies = {"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"}
    for name in list(environment):
        if name.upper().startswith("AWS_") or name.upper() in proxies or name == "BOTO_CONFIG":
            del environment[name]
    environment.update(OURS, AWS_ENDPOINT_URL=endpoint)


class SimulatedAws:
    """A simulated AWS with a fleet in it (`simcloud.fleet`), in a process that ends when we do. `log`: where its
    complaints go; `environment`: its own, ours if none is given."""

    def __init__(self, log: Path, *, environment: Mapping[str, str] | None = None) -> None:
        self._log, self._environment = log, environment
        self._process: subprocess.Popen[str] | None = None
        self.endpoint = ""

    def start(self, wish: Mapping[str, Any]) -> Mapping[str, Any]:
        """It serves, as wished for (`simcloud.fleet.Wish`): where, and what is there."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own program; it ends when its input does
                [sys.executable, "-P", "-m", "simcloud.fleet", json.dumps(wish)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=self._environment,
                start_new_session=True,
                cwd="/",
            )
        assert self._process.stdout is not None
        said = self._process.stdout.readline()  # it waits for its instances itself, and gives up in time
        if not said:
            words = self._log.read_text(errors="replace").strip().splitlines()[-1:]
            raise ChangeoverError(f"the simulated AWS did not come up: {' '.join(words)}", next=f"less {self._log}")
        made: Mapping[str, Any] = json.loads(said)
        self.endpoint = str(made["endpoint"])
        return made

    def ask(self, what: str, **about: Any) -> Any:
        """What an operator of the simulated cloud itself asks of it."""
        answer = httpx2.post(f"{self.endpoint}/sim/{what}", json=about, timeout=30.0, trust_env=False)
        if answer.status_code != httpx2.codes.OK:
            raise ChangeoverError(f"the simulated AWS refused {what}: {answer.text[:300]}")
        return answer.json()

    def end(self) -> None:
        """It has ended, and its instances with it."""
        if self._process is None or self._process.stdin is None:
            return
        self._process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(60)
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()


@dataclass
class AwsScene(Surroundings):
    """See `Surroundings`. `pools`: by pool, the account of its target group and where its balancer takes users."""

    accounts: Mapping[str, int] = field(default_factory=lambda: ACCOUNTS)
    rate: int = 120
    pools: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    servers: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    cloud: SimulatedAws | None = None
    _told: tuple[float, str] = (0.0, "")  # until when that is to be shown

    @property
    def opening(self) -> str:
        return (
            f"building a shop on a simulated AWS: {sum(self.accounts.values())} instances in {len(self.accounts)} "
            "accounts and two zones, a target group in each account, and a separate database"
        )

    def build(self) -> None:
        """Everything serves: database, cloud, instances, balancers."""
        self._watch()
        self.database = f"127.0.0.1:{self._start_database()}"
        cut_off(os.environ, "http://127.0.0.1:9")  # nothing is at that port, until there is a cloud
        self.cloud = SimulatedAws(self.out / "aws.log")
        made = self.cloud.start(self._wish())
        cut_off(os.environ, self.cloud.endpoint)
        self.servers = {server["name"]: server for server in made["servers"]}
        self.names = list(self.servers)
        self.ids = {name: str(server["id"]) for name, server in self.servers.items()}
        self.pools = {f"web-{letter}": pool for letter, pool in zip("abcdefgh", made["pools"], strict=False)}

    def _wish(self) -> Mapping[str, Any]:
        command = [sys.executable, "{folder}/site.py", "--address", "{address}", "--port", "{port}"]
        return {
            "accounts": self.accounts,
            "region": REGION,
            "port": PORT,
            "users": USERS,
            "delay": DELAY,
            "command": [*command, "--root", "{folder}", "--database", self.database],
            "files": str(self._files()),
            "timings": TIMINGS,
        }

    def _ask(self, what: str, **about: Any) -> Any:
        assert self.cloud is not None, "built before"
        return self.cloud.ask(what, **about)

    def spoil(self, name: str) -> None:
        """Bind that server's licence to its address: a clone of it will not be healthy."""
        server = self.servers[name]
        self._ask("file", id=server["id"], path="LICENCE", text=server["address"])

    def misbehave(self) -> str:
        """From now on it is as AWS is on a bad day; in words."""
        for pattern, (size, refill) in LIMITS.items():
            self._ask("limits", pattern=pattern, size=size, refill=refill)
        for fault in FAULTS:
            self._ask("faults", **fault)
        return "from now on AWS loses one answer in 33 after it has done as told, fails one call in 50, and throttles"

    # -- what is given to Changeover ------------------------------------------------------------------------------

    def fleet_file(self) -> Path:
        """The file that the demo applies: kept beside the report, to be read and reused."""
        first = next(iter(self.accounts))
        at = {pool["account"]: name for name, pool in self.pools.items()}

        def elsewhere(account: str) -> str:
            return "" if account == first else f', account: "{account}"'

        servers = "\n".join(
            f"  - {{name: {name}, id: {server['id']}, pools: [{at[server['account']]}]{elsewhere(server['account'])}}}"
            for name, server in self.servers.items()
        )
        pools = "\n".join(
            f"    {name}: {{backend: shop, port: {PORT}, min_healthy: {max(1, self.accounts[pool['account']] - 3)}"
            f"{elsewhere(pool['account'])}}}"
            for name, pool in self.pools.items()
        )
        assert self.cloud is not None, "built before"
        text = FLEET.format(region=REGION, account=first, endpoint=self.cloud.endpoint, servers=servers, pools=pools)
        path = self.out / "fleet.yaml"
        path.write_text(text)
        return path

    def send_users(self) -> None:
        """Open-loop traffic on the balancers of both accounts, from now until `dismiss_users`."""
        self._send_users(f"{pool['host']}:{pool['port']}" for pool in self.pools.values())

    # -- the end --------------------------------------------------------------------------------------------------

    def made_for(self) -> list[str]:
        """Whose new servers are there: the name of the old one, once for each."""
        return sorted(self._made("instance"))

    def _made(self, kind: str) -> list[str]:
        """For whom things of this kind were made, by the cloud's own tables."""
        found = (self._ask("billable", account=account, region=REGION)[kind] for account in self.accounts)
        tags = [each for things in found for each in things.values()]
        return [str(each.get("changeover:server")) for each in tags if each.get("changeover:managed") == "1"]

    def left_over(self, upgraded: Sequence[str]) -> Sequence[str]:
        """What is there that should not be, and who has called that should not have."""
        wrong = [
            f"the {kind}s of AWS are of {', '.join(found) or 'nobody'}: wanted one for each upgraded server"
            for kind in ("image", "snapshot")
            if (found := sorted(self._made(kind))) != sorted(upgraded)
        ]
        strangers = [
            key for key in self._ask("tally")["keys"] if key != OURS["AWS_ACCESS_KEY_ID"] and key[:4] != "ASIA"
        ]
        return [*wrong, *(f"somebody else's key has called: {key[:4]}..." for key in strangers)]

    def tally(self) -> Tally:
        """By kind of call: how many there were, and how many of them were throttled, lost or refused."""
        told = self._ask("tally")
        found: dict[str, dict[str, int]] = {}
        for what in ("calls", "throttled", "lost", "refused"):
            for name, count in told[what].items():
                row = found.setdefault(family(name), dict.fromkeys(("calls", "throttled", "lost", "refused"), 0))
                row[what] += count
        return dict(sorted(found.items()))

    def trouble_so_far(self) -> str:
        """At most a second old."""
        if time.monotonic() > self._told[0]:
            rows = self.tally().values()
            calls, throttled, lost = (sum(row[what] for row in rows) for what in ("calls", "throttled", "lost"))
            words = f"{calls:,} calls to AWS, {throttled} throttled, {lost} answers lost"
            self._told = (time.monotonic() + 1.0, words)
        return self._told[1]

    def clear(self) -> None:
        """Nothing of it runs any more."""
        super().clear()
        if self.cloud is not None:
            self.cloud.end()
        shutil.rmtree(self.short, ignore_errors=True)


SERVICES = {"ec2": "EC2", "elbv2": "ELBv2", "ssm": "SSM", "sts": "STS"}


def family(call: str) -> str:
    """`ec2:DescribeInstances` is one of `EC2 looks`."""
    service, _, action = call.partition(":")
    looks = action.startswith(("Describe", "List", "Get"))
    kind = "roles" if service == "sts" else "looks" if looks else "commands" if service == "ssm" else "changes"
    return f"{SERVICES.get(service, service)} {kind}"


FLEET = """\
# The shop of `changeover demo --cloud aws`, to be replaced, instance by instance, by ones of twice the size.
version: 1
fleet: shop
provider:
  name: aws
  region: {region}
  account: "{account}"
  settings: {{endpoint: "{endpoint}", role: "arn:aws:iam::{{account}}:role/changeover"}}
target:
  size: {{type: t3.medium, memory: 4GiB, disk: 16GiB}}
servers:
{servers}
traffic:
  provider: elbv2
  settings: {{region: {region}, endpoint: "{endpoint}", role: "arn:aws:iam::{{account}}:role/changeover", poll: 1}}
  pools:
{pools}
checks:
  guest:
    disk_free: 1GiB
    memory_free: 1GiB
    permissions: [{{path: /secret.key, mode: "0640"}}]
    like_old: [/secret.key, /site.py, /release.json]
  smoke:
    passes: 3
    every: 250ms
    requests:
      - {{url: "http://shop.test/health"}}
      - {{url: "http://shop.test/", same_as_old: true, timeout: 2s}}
      - {{url: "http://shop.test/api/item/7", same_as_old: true, timeout: 2s, contains: ["cents"]}}
state: stateless   # orders live in the shop's database
rollout:
  waves: [1, 4, rest]
  bake: 2s
  soak: 2s
  max_in_flight: 8
  budget: {{before_swap: 1}}
  attempts: 20
  poll: 1s
  back_off: 500ms
  drain: {{deadline: 60s, at_deadline: keep, quiet: 500ms}}
retain:
  old_servers: 24h
"""
