"""Users of the sites of simulated machines, over real connections."""

from __future__ import annotations

import http.client
import threading
from collections import Counter


class Users:
    """Each keeps asking one balancer, with a connection of its own for each second request."""

    def __init__(self, places: dict[str, tuple[str, int]], *, each: int = 2) -> None:
        self.failures: list[str] = []
        self.served: dict[str, Counter[str]] = {name: Counter() for name in places}
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._visit, args=(name, place), daemon=True)
            for name, place in places.items()
            for _ in range(each)
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)

    def _visit(self, name: str, place: tuple[str, int]) -> None:
        while not self._stop.is_set():
            link = http.client.HTTPConnection(*place, timeout=30)
            try:
                for _ in range(2):
                    link.request("GET", "/index.html")
                    answer = link.getresponse()
                    body = answer.read()
                    if (answer.status, body) != (200, b"hello\n"):
                        self.failures.append(f"{name}: {answer.status} {body!r}")
                    self.served[name][answer.getheader("X-Served-By", "")] += 1
                    self._stop.wait(0.05)
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(f"{name}: {error!r}")
            finally:
                link.close()
