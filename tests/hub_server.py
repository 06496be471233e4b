"""A few lines of the Hub's HTTP interface on 127.0.0.1, enough for the real client to list and download one
repository.
"""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0" * 39 + "1"


@contextmanager
def serve(repository: str, folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Serve `folder` as `repository`; yields the endpoint and the list of files that were downloaded so far."""
    downloaded: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def log_message(self, *_: object) -> None:
            pass

        def _answer(self, body: bool) -> None:
            path = unquote(urlsplit(self.path).path)
            if path.startswith(f"/api/models/{repository}/tree/"):
                files = [
                    {"type": "file", "path": f.name, "size": f.stat().st_size, "oid": "0" * 40}
                    for f in sorted(folder.iterdir())
                ]
                self._send(200, json.dumps(files).encode(), body, "application/json")
                return
            if path.startswith(f"/api/models/{repository}"):
                siblings = [{"rfilename": file.name} for file in sorted(folder.iterdir())]
                self._send(
                    200,
                    json.dumps({"id": repository, "sha": COMMIT, "siblings": siblings}).encode(),
                    body,
                    "application/json",
                )
                return
            prefix = f"/{repository}/resolve/"
            name = path.removeprefix(prefix).partition("/")[2]
            if not path.startswith(prefix) or not (folder / name).is_file():
                code = "EntryNotFound" if path.startswith(prefix) else "RepoNotFound"
                self._send(404, b"{}", body, "application/json", **{"X-Error-Code": code, "X-Error-Message": "none"})
                return
            data = (folder / name).read_bytes()
            if body:
                downloaded.append(name)
            tag = f'"{hashlib.sha1(data).hexdigest()}"'
            self._send(200, data, body, "application/octet-stream", **{"ETag": tag, "X-Repo-Commit": COMMIT})

        def _send(self, status: int, data: bytes, body: bool, kind: str, **headers: str) -> None:
            self.send_response(status)
            for key, value in {"Content-Type": kind, "Content-Length": str(len(data)), **headers}.items():
                self.send_header(key, value)
            self.end_headers()
            if body:
                self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", downloaded
    finally:
        server.shutdown()
        server.server_close()
