"""What runs on a machine: a small site on the machine's own address. It answers with who it is.

    python -S site.py ADDRESS PORT FOLDER NAME MODE

`/health` is 200 once the site is up, and 503 in mode `sick` or while the machine's folder has a file `sick`; `/slow` is
answered when there is no file `hold`; any other path is a file of the folder.
"""

from __future__ import annotations

import json
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Site(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    folder = Path()
    name = ""
    mode = ""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/health":
            ill = self.mode == "sick" or (self.folder / "sick").exists()
            self._answer(503 if ill else 200, json.dumps({"server": self.name, "ok": not ill}).encode())
            return
        if path == "/slow":
            while (self.folder / "hold").exists():
                time.sleep(0.01)
            self._answer(200, b"at last\n")
            return
        wanted = (self.folder / path.lstrip("/")).resolve()
        if self.folder in wanted.parents and wanted.is_file():
            self._answer(200, b"something else\n" if self.mode == "wrong" else wanted.read_bytes())
        else:
            self._answer(404, b"not here\n")

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Served-By", self.name)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_args: object) -> None: ...


def main() -> None:
    address, port, folder, Site.name, Site.mode = sys.argv[1:6]
    Site.folder = Path(folder).resolve()
    if Site.mode == "slow":
        time.sleep(2.0)
    ThreadingHTTPServer((address, int(port)), Site).serve_forever()


if __name__ == "__main__":
    main()
