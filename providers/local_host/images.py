"""Images: a compressed archive of a server's folder, taken while its processes stand still for a moment.

Crash-consistent: what the server had not yet written is not in it. An image is pending until its archive is whole,
on disk and under its name; before that nobody can see a part of it.
"""

from __future__ import annotations

import logging
import shutil
import threading
import time
import uuid
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

from providers.errors import Conflict, GuardRefused, NotFound, ProviderError, Refused, Transient
from providers.local_host import records
from providers.local_host.chores import Chore
from providers.local_host.records import ImageRecord
from providers.local_host.servers import MANAGED, TOMBSTONE_SECONDS, Servers

log = logging.getLogger(__name__)


class Images:
    """All images of one host. Thread-safe. `folder` holds ID.json and ID.tar.zst; `staging` is cleared at start."""

    def __init__(
        self, folder: Path, staging: Path, *, host: Path, servers: Servers, max_pause: float, at_once: int = 2
    ) -> None:
        self._folder, self._staging, self._host = folder, staging, host
        self._servers, self._max_pause = servers, max_pause
        self._lock = threading.RLock()
        self._records: dict[str, ImageRecord] = {}
        self._making = threading.BoundedSemaphore(at_once)
        self._closing = False
        folder.mkdir(mode=0o700, exist_ok=True)

    def all(self) -> list[ImageRecord]:
        """Those that exist; a deleted one does not."""
        with self._lock:
            return [record for record in self._records.values() if record.state != "deleted"]

    def get(self, id: str) -> ImageRecord:
        with self._lock:
            record = self._records.get(id)
        if record is None or record.state == "deleted":
            raise NotFound(f"no image {id!r} here")
        return record

    def ready(self, id: str) -> ImageRecord:
        """An image that servers can be made of. `Refused` if it is not available."""
        record = self.get(id)
        if record.state != "available":
            raise Refused(f"image {id} is {record.state}, not available {record.reason}".rstrip())
        return record

    def archive_of(self, id: str) -> Path:
        return self._folder / f"{id}.tar.zst"

    def ensure(self, *, token: str, name: str, source: str, tags: Mapping[str, str]) -> tuple[ImageRecord, bool]:
        """The one image of that token, and whether it was made now, since it was not there. See
        `providers.compute.Compute.ensure_image`."""
        with self._lock:
            for made in self._records.values():
                if made.token == token:
                    if made.source != source:
                        raise Conflict(f"this key already made {made.id} from another server")
                    if made.state == "deleted":
                        raise Refused(f"this key made {made.id}, which is deleted: the attempt is used up")
                    return made, False
            if self._closing:
                raise Transient("the host is shutting down", ambiguous=False)
            self._servers.filled(source)
            record = ImageRecord(id=f"img-{uuid.uuid4().hex[:12]}", name=name, token=token, source=source, tags=tags)
            self._save(record)
            self._begin(record.id)
            return record, True

    def delete(self, id: str) -> None:
        with self._lock:
            record = self.get(id)
            if record.tags.get(MANAGED) != "1":
                raise GuardRefused(f"image {id} does not carry {MANAGED}=1: it is not ours to delete")
            self._save(replace(record, state="deleted", ended=time.time()))
            self.archive_of(id).unlink(missing_ok=True)

    def load(self) -> None:
        """Takes up what a former host left; an image that was pending when it died is made again."""
        shutil.rmtree(self._staging, ignore_errors=True)
        self._staging.mkdir(mode=0o700)
        for path in sorted(self._folder.glob("*.json")):
            record = ImageRecord(**records.read(path))
            if record.state == "deleted" and time.time() - record.ended > TOMBSTONE_SECONDS:
                path.unlink()
                continue
            self._records[record.id] = record
        for path in self._folder.glob("*.tar.zst"):
            known = self._records.get(path.name.removesuffix(".tar.zst"))
            if known is None or known.state != "available":
                path.unlink()
        for record in self.all():
            if record.state == "pending":
                self._begin(record.id)

    def close(self) -> None:
        """Begins no more images; those pending are made by the next host."""
        with self._lock:
            self._closing = True

    def _save(self, record: ImageRecord) -> None:
        with self._lock:
            was = self._records.get(record.id)
            records.write(self._folder / f"{record.id}.json", record)
            self._records[record.id] = record
        if was is None or was.state != record.state:
            log.info("%s of %s: %s -> %s %s", record.id, record.source, was and was.state, record.state, record.reason)

    def _begin(self, id: str) -> None:
        threading.Thread(target=self._make, args=(id,), name=id, daemon=True).start()

    def _make(self, id: str) -> None:
        place = self._staging / id
        try:
            with self._making:
                if self._closing:
                    return
                place.mkdir(mode=0o700)
                pause, disk = self._take(id, place)
                self._publish(id, place / "packed", disk, pause)
        except NotFound as error:
            self._give_up(id, str(error))
        except (ProviderError, OSError) as error:
            log.exception("%s", id)
            self._give_up(id, str(error))
        finally:
            shutil.rmtree(place, ignore_errors=True)

    def _take(self, id: str, place: Path) -> tuple[float, int]:
        """Makes the archive `packed`; returns for how many seconds the server stood still, and the disk it needs.

        The server is held until its files are collected; compressing them goes on beside it.
        """
        with ExitStack() as making:
            with self._servers.held(self.get(id).source) as (root, pids):
                given = {
                    "root": str(root),
                    "pids": pids,
                    "staging": str(place / "plain"),
                    "packed": str(place / "packed"),
                }
                chore = making.enter_context(Chore(self._host, "snapshot", seconds=self._max_pause, **given))
                pause = float(chore.answer()["pause"])
            with self._lock:
                self._save(replace(self.get(id), taken=True))
            return pause, int(chore.answer()["disk"])

    def _publish(self, id: str, packed: Path, disk: int, pause: float) -> None:
        with self._lock:
            record = self.get(id)  # NotFound if it was deleted meanwhile
            packed.rename(self.archive_of(id))
            records.sync_folder(self._folder)
            stored = self.archive_of(id).stat().st_size
            self._save(replace(record, state="available", disk=disk, stored=stored, pause=pause))

    def _give_up(self, id: str, reason: str) -> None:
        with self._lock, suppress(NotFound):
            self._save(replace(self.get(id), state="failed", reason=reason))
