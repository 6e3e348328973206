"""Where everything is, from the environment (`CHANGEOVER_*`) or from what `changeover up` left in the state folder."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from orchestrator.addresses import with_database, with_password
from orchestrator.errors import BadInput, Unreachable

PREFIX = "CHANGEOVER_"
PASSWORD = PREFIX + "REDIS_PASSWORD"


def default_state_dir() -> Path:
    return Path.home() / ".local" / "state" / "changeover"


@dataclass(frozen=True, kw_only=True)
class Urls:
    """Where the records are, Celery's messages, and its results."""

    records: str = field(repr=False)  # with the password
    messages: str = field(repr=False)
    results: str = field(repr=False)


# Processes that are started for somebody may be somewhere else.
File = Annotated[Path, AfterValidator(Path.absolute)]


class Settings(BaseModel):
    """What is not given is read from the environment, as `CHANGEOVER_` and the name in capitals, or from the file that
    the same name with `_FILE` says, as secrets are given to containers and services. `CHANGEOVER_REDIS_PASSWORD`, given
    either way, goes into a `redis_url` that has none.

    `redis_url` holds the records; broker and results default to databases 1 and 2 of the same server, and may each
    be on a server of their own; `orchestrator.addresses` says how they are written. `lease` is how many seconds a
    worker owns an upgrade without renewing, `grace` how many a message may be on its way before it is sent again,
    `late` after how many a call has taken effect or never will. What nobody accounts for is believed after
    `orphan_seen` seconds, and kept in quarantine for `orphan_kept`. A worker ends itself after `stall` seconds in which
    messages waited and it took none. `hooks` is the file of the webhooks that the API takes, `notify` of those that
    workers send; `flower_url` where people find Flower, for links on the fleet page. `dev` lets Redis be one that
    forgets. Where there is a `url`, commands ask the API there under `token`, and not Redis;
    `insecure` lets them do so over http:// to another host."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    redis_url: str = Field(default="", repr=False)
    broker_url: str = Field(default="", repr=False)
    result_url: str = Field(default="", repr=False)
    namespace: str = Field(default="default", pattern=r"^[a-z0-9-]{1,40}$")
    state_dir: Path = Field(default_factory=default_state_dir)
    lease: float = Field(default=60.0, gt=0.1, le=3600)
    grace: float = Field(default=5.0, gt=0.1, le=3600)
    late: float = Field(default=15.0, ge=0, le=3600)
    orphan_seen: float = Field(default=900.0, ge=0, le=30 * 86400)
    orphan_kept: float = Field(default=86400.0, ge=0, le=365 * 86400)
    stall: float = Field(default=60.0, gt=0.1, le=3600)
    concurrency: int = Field(default=16, ge=1, le=256)
    queue: str = Field(default="changeover", pattern=r"^[a-z0-9.-]{1,60}$")
    flower_url: str = Field(default="", pattern=r"^((https?:/)?/[^\s]*)?$")
    hooks: File | None = None
    notify: File | None = None
    dev: bool = False
    url: str = ""
    token: str = Field(default="", repr=False)
    insecure: bool = False

    @model_validator(mode="before")
    @classmethod
    def _environment(cls, given: dict[str, Any]) -> dict[str, Any]:
        found = {name: said for name in cls.model_fields if (said := _said(PREFIX + name.upper())) is not None}
        if found.get("redis_url") and (password := _said(PASSWORD)):
            found["redis_url"] = with_password(found["redis_url"], password)
        return {**found, **given}

    @classmethod
    def load(cls) -> Settings:
        """From the environment. Raises `BadInput` naming the variable that is wrong."""
        try:
            return cls()
        except ValidationError as error:
            found = error.errors(include_url=False)[0]
            name = PREFIX + "_".join(str(part) for part in found["loc"]).upper()
            raise BadInput(found["msg"], place=name, next=f"unset {name}") from None

    @classmethod
    def variables(cls) -> set[str]:
        """What it reads of the environment."""
        names = {PREFIX + name.upper() for name in cls.model_fields} | {PASSWORD}
        return names | {f"{name}_FILE" for name in names}

    @property
    def run_file(self) -> Path:
        """Written by `changeover up`: where its Redis, Flower and processes are."""
        return self.state_dir / "run.json"

    def store_url(self) -> str:
        """The URL of the records; see `urls`."""
        return self.urls().records

    def urls(self) -> Urls:
        """What was given; else what runs here; and what is not said is another database of the records' server.

        Raises `Unreachable` when no records are known, `BadInput` for what is no address of them."""
        found = {"redis_url": self.redis_url} if self.redis_url else self._running()
        records = found["redis_url"]
        return Urls(
            records=records,
            messages=self.broker_url or found.get("broker_url") or with_database(records, 1),
            results=self.result_url or found.get("result_url") or with_database(records, 2),
        )

    def _running(self) -> dict[str, str]:
        try:
            run = json.loads(self.run_file.read_text())
            return {"redis_url": run["redis_url"], **{name: run.get(name, "") for name in ("broker_url", "result_url")}}
        except (OSError, ValueError, KeyError):
            raise Unreachable(
                f"no Redis: CHANGEOVER_REDIS_URL is not set and nothing runs in {self.state_dir}", next="changeover up"
            ) from None


def _said(name: str) -> str | None:
    """What the environment says, itself or by naming a file. Raises `BadInput` for both, and for an unreadable file."""
    said, file = os.environ.get(name), os.environ.get(f"{name}_FILE")
    if not file:
        return said
    if said:
        raise BadInput(f"{name} is given too", place=f"{name}_FILE", next=f"unset {name}")
    try:
        return Path(file).read_text().strip()
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not text"
        raise BadInput(f"{file} cannot be read: {why}", place=f"{name}_FILE", next=f"ls -l {file}") from None
