"""Servers and images: what a compute provider promises. The docstrings are the contract; `tests/contract` holds it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from providers import Caps, Finding, Key
from providers.rights import Rights

ServerState = Literal["pending", "running", "stopping", "stopped", "terminated", "failed"]
ImageState = Literal["pending", "available", "failed"]


@dataclass(frozen=True, kw_only=True)
class Size:
    """What a server may use. Bytes; `type` is the vendor's own name of it, if it has one. `subnet`: where it is, if not
    where the server is that it is made like."""

    memory: int
    disk: int
    type: str = ""
    subnet: str = ""


@dataclass(frozen=True, kw_only=True)
class Subnet:
    """Where servers can be. `zone` is the vendor's own name of what fails together; `free` addresses are left."""

    id: str
    zone: str
    free: int


@dataclass(frozen=True, kw_only=True)
class Server:
    """A server as the provider sees it now. `boot` changes whenever it starts anew. `launched` is epoch seconds.
    `protected`: see `Compute.protect`; told where it was asked for."""

    id: str
    name: str
    state: ServerState
    address: str
    size: Size
    tags: Mapping[str, str] = field(default_factory=dict)
    boot: str = ""
    launched: float = 0.0
    reason: str = ""
    protected: bool = False


@dataclass(frozen=True, kw_only=True)
class Image:
    """An image of a server. `disk` is the least disk in bytes that a server made of it needs. `adopted`, said by
    `ensure_image` alone: it was there before that call, and nobody knows since when."""

    id: str
    name: str
    state: ImageState
    disk: int
    tags: Mapping[str, str] = field(default_factory=dict)
    reason: str = ""
    adopted: bool = False


Given = Mapping[str, str | None]


@dataclass(frozen=True, kw_only=True)
class Stopping:
    """A server that is to be stopped, if it carries these tags."""

    id: str
    given: tuple[tuple[str, str | None], ...]

    @classmethod
    def of(cls, id: str, given: Given | None) -> Stopping:
        return cls(id=id, given=tuple(sorted((given or {}).items())))


class Compute(Protocol):
    """Every call is bounded (connect 3 s, read 10 s), makes at most one mutation, and may be repeated.

    Any call may raise any of `providers.errors`; a mutation that may have happened raises
    `Transient(ambiguous=True)`. No call retries a mutation by itself.

    `given` is compare-and-set at the resource: tags that the server must carry at that very moment (None: must not
    carry), else `GuardRefused` and nothing changes. The late call of somebody whose time has passed finds other tags.
    """

    @property
    def caps(self) -> Caps: ...

    def servers(self, ids: Sequence[str], *, protection: bool = False) -> Mapping[str, Server]:
        """Those of the ids that exist, in one call per `caps.batch`. A missing id is left out and harms no other.
        `protection`: it is to be told which are protected, which may take calls of its own."""
        ...

    def images(self, ids: Sequence[str]) -> Mapping[str, Image]:
        """As `servers`, for images."""
        ...

    def inventory(self, tags: Mapping[str, str]) -> Sequence[Server | Image]:
        """Everything that carries all these tags, in any state but terminated or deleted; eventually consistent."""
        ...

    def obstacles(self, ids: Sequence[str], *, sizes: Sequence[Size]) -> Mapping[str, Sequence[str]]:
        """Why some of these servers cannot be made anew in one of the sizes, one line each; the others are left out.
        Only looks. What it cannot see beforehand is `Refused` when it is made."""
        ...

    def subnets(self, like: str, /, *, among: Sequence[str]) -> Sequence[Subnet]:
        """Where a server like that one can be: its own subnet first, then those of `among`, in their order. Nothing
        where the provider knows no subnets. `Refused` for one that is not there, or that its network does not reach."""
        ...

    def examine(
        self, ids: Sequence[str], *, sizes: Sequence[Size], at_once: int, among: Sequence[str] = ()
    ) -> Sequence[Finding]:
        """What a doctor should say beyond each server: whose account this is, and whether it has room for these servers
        to be made anew in the first of the sizes, `at_once` under way at a time, in their own subnets or in those of
        `among`. Changes nothing, and raises nothing that it can tell as a finding."""
        ...

    def rights(self, ids: Sequence[str], *, fleet: str) -> Sequence[Rights]:
        """What credentials have to allow for these servers to be replaced, and no more. `fleet` is what it is called.
        Looks where it may, and raises nothing: who has no rights yet asks for them."""
        ...

    def recipe(self) -> str:
        """What new servers are made of beside an image and a server that they are to be like: a word that changes with
        it, so that a plan can be bound to it. Empty where there is nothing else."""
        ...

    def ensure_image(self, key: Key, *, source: str) -> Image:
        """After it returns, exactly one image of that key exists, perhaps still pending; A kept serving meanwhile.

        Adopts what the key already made; `Conflict` if that has another source. `NotFound` if the source is gone.
        """
        ...

    def taken(self, image: str, /) -> bool:
        """Whether the moment that this image is of has passed: what its source writes from now on is not in it.
        `NotFound` if it is gone."""
        ...

    def ensure_server(self, key: Key, *, image: str, like: str, size: Size) -> Server:
        """After it returns, exactly one server of that key exists, perhaps still pending, made of the image and
        configured like the server `like` except for its size, its address and its traffic tags.

        Adopts what the key already made; `Conflict` if that has another image or size. A server that was made by
        this key and is terminated is `Refused`: the attempt is used up.
        """
        ...

    def stop(self, id: str, *, given: Given | None = None) -> None:
        """The server is stopping or stopped, its disk kept. Stopping a stopped one is success.
        `GuardRefused` while it is protected, `NotFound` if it is gone."""
        ...

    def start(self, id: str, *, given: Given | None = None) -> None:
        """The server is pending or running again. Starting a running one is success. `NoCapacity` is possible."""
        ...

    def terminate(self, id: str, *, given: Given | None = None) -> None:
        """The server is gone or going, with its disk. A server that is not there is success.
        `GuardRefused` while it is protected, and for one that neither carries `changeover:managed=1` nor
        `changeover:disposable=1`."""
        ...

    def delete_image(self, id: str) -> None:
        """The image and its storage are gone. One that is not there is success. `GuardRefused` if it lacks
        `changeover:managed=1`."""
        ...

    def protect(self, id: str, on: bool, *, given: Given | None = None) -> None:
        """While on, `stop` and `terminate` of this server are refused by the provider, whoever asks."""
        ...

    def tag(self, id: str, tags: Mapping[str, str | None], *, given: Given | None = None) -> None:
        """Sets tags of a server; None removes one."""
        ...
