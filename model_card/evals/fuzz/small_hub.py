"""A small Hub on 127.0.0.1 for the real client: repositories with revisions and folders, downloads by range, commits.

It can drop a connection in the middle of a file. Of uploads it knows the plain form, base64 within the commit.
"""

import base64
import hashlib
import json
import os
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

Files = dict[str, bytes]
NO_PROXY = {"NO_PROXY": "*", "no_proxy": "*"}  # a proxy of this machine does not reach 127.0.0.1


def client_environment(endpoint: str, home: Path) -> dict[str, str]:
    """The environment of a client process that knows this Hub alone, with a cache of its own."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    return environment | NO_PROXY | {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1"}


class Hub:
    """The repositories and what was asked of them. `commits[repository]` maps a revision's name or id to its files."""

    def __init__(self) -> None:
        self.commits: dict[str, dict[str, Files]] = {}
        self.heads: dict[str, dict[str, str]] = {}
        self.downloads: list[tuple[str, str | None]] = []  # path, and the range asked for
        self.drop: dict[str, int] = {}  # path -> bytes after which the connection breaks, once
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.endpoint = f"http://127.0.0.1:{self.server.server_address[1]}"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def commit(self, repository: str, branch: str, files: Files) -> str:
        """Put these files on top of a branch, which is made if need be; returns the commit's id."""
        commits, heads = self.commits.setdefault(repository, {}), self.heads.setdefault(repository, {})
        before = commits[heads[branch]] if branch in heads else {}
        commit = hashlib.sha1(f"{repository} {branch} {len(commits)}".encode()).hexdigest()
        commits[commit], heads[branch] = before | files, commit
        return commit

    def at(self, repository: str, revision: str) -> tuple[str, Files] | None:
        commit = self.heads.get(repository, {}).get(revision, revision)
        files = self.commits.get(repository, {}).get(commit)
        return None if files is None else (commit, files)


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._get(body=False)

    def do_GET(self) -> None:
        self._get(body=True)

    def _get(self, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+)(?:/(.*))?)?", path):
            repository, kind, revision, folder = match.groups()
            found = self._found(repository, revision or "main", body)
            if found and kind == "tree":
                inside = [name for name in sorted(found[1]) if name.startswith(folder or "")]
                self._json(
                    [{"type": "file", "path": n, "size": len(found[1][n]), "oid": "0" * 40} for n in inside], body
                )
            elif found:
                siblings = [{"rfilename": name} for name in sorted(found[1])]
                self._json({"id": repository, "sha": found[0], "siblings": siblings, "private": False}, body)
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            repository, revision, name = match.groups()
            found = self._found(repository, revision, body)
            if found and name not in found[1]:
                self._send(404, b"", body, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": found[0]})
            elif found:
                self._file(name, found[1][name], found[0], body)
        else:
            self._send(404, b"", body, {})

    def _found(self, repository: str, revision: str, body: bool) -> tuple[str, Files] | None:
        found = self.hub.at(repository, revision)
        if found is None:
            code = "RevisionNotFound" if repository in self.hub.commits else "RepoNotFound"
            self._send(404, b"", body, {"X-Error-Code": code})
        return found

    def _file(self, name: str, data: bytes, commit: str, body: bool) -> None:
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        asked = self.headers.get("Range")
        status, part = 200, data
        if body:
            self.hub.downloads.append((name, asked))
        if asked and (match := re.fullmatch(r"bytes=(\d+)-(\d*)", asked)):
            begin, end = int(match[1]), int(match[2] or len(data) - 1)
            status, part = 206, data[begin : end + 1]
            headers["Content-Range"] = f"bytes {begin}-{end}/{len(data)}"
        if body and name in self.hub.drop:
            keep = self.hub.drop.pop(name)
            self._send(status, part[:keep], body, headers, length=len(part))
            self.close_connection = True
            return
        self._send(status, part, body, headers)

    def do_POST(self) -> None:
        path = unquote(urlsplit(self.path).path)
        text = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        if path == "/api/repos/create":
            asked = json.loads(text)
            name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            self.hub.commits.setdefault(name, {}) or self.hub.commit(name, "main", {})
            self._json({"url": f"{self.hub.endpoint}/{name}", "id": name}, True)
        elif path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []}, True)
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/branch/([^/]+)", path):
            heads, branch = self.hub.heads[match[1]], match[2]
            if branch in heads:
                self._send(409, b"", True, {})
            else:
                heads[branch] = heads["main"]
                self._json({}, True)
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/([^/]+)", path):
            modes = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(text)["files"]
            ]
            self._json({"files": modes}, True)
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/([^/]+)", path):
            repository, branch = match.groups()
            values = [line["value"] for line in map(json.loads, text.splitlines()) if line["key"] == "file"]
            files = {value["path"]: base64.b64decode(value["content"]) for value in values}
            commit = self.hub.commit(repository, branch, files)
            url = f"{self.hub.endpoint}/{repository}/commit/{commit}"
            self._json({"success": True, "commitOid": commit, "commitUrl": url}, True)
        else:
            self._send(404, b"", True, {})

    def _json(self, value: Any, body: bool) -> None:
        self._send(200, json.dumps(value).encode(), body, {"Content-Type": "application/json"})

    def _send(self, status: int, data: bytes, body: bool, headers: dict[str, str], length: int | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(data) if length is None else length), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(data)
