"""A server of 40 lines, for tests: `python tiny_site.py ADDRESS PORT`. Standard library only, so it starts at once.

GET /allocate?N asks for N MiB of memory and says whether that was refused. GET /write?N writes a file of N MiB.
GET /child starts a process of its own session. PUT /f writes the body to the file f in its folder. Else: who it is.
"""

import http.server
import os
import subprocess
import sys
from pathlib import Path


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        what, _, number = self.path.partition("?")
        text = f"{os.environ['ADDRESS']} {os.getpid()} {os.environ.get('COLOUR', '')}"
        if what == "/allocate":
            try:
                text = f"got {len(bytearray(int(number) << 20))}"
            except MemoryError:
                text = "MemoryError"
        elif what == "/write":
            try:
                Path("big").write_bytes(bytes(int(number) << 20))
                text = "written"
            except OSError as error:
                text = str(error.strerror)
        elif what == "/child":
            child = subprocess.Popen(["sleep", "600"], start_new_session=True)
            text = str(child.pid)
        elif what != "/" and Path(what[1:]).is_file():
            text = Path(what[1:]).read_text()
        self.reply(text)

    def do_PUT(self) -> None:
        Path(self.path[1:]).write_bytes(self.rfile.read(int(self.headers["Content-Length"])))
        self.reply("ok")

    def reply(self, text: str) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *args: object) -> None: ...


http.server.ThreadingHTTPServer((sys.argv[1], int(sys.argv[2])), Handler).serve_forever()
