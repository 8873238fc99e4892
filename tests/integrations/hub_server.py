"""A stand-in for the Hugging Face Hub: a local HTTP server that speaks the endpoints a push needs."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_" + "a" * 20
OID = "0" * 40


@dataclass
class Repo:
    """One model repository: its files by branch."""

    private: bool
    branches: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"main": {".gitattributes": b"x"}})
    tags: list[str] = field(default_factory=list)
    commits: int = 0


class Hub:
    """The state behind the server: account `ada` may write to `ada/...`."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.url = ""
        self.account = "ada"
        self.refuse: dict[str, int] = {}
        """Part of a path -> status every request to it gets."""
        self.asked: list[str] = []


def handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    """A request handler that answers for `hub`."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def answer(self, status: int, value: Any = None) -> None:
            body = b"" if value is None else json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            if status == 404:
                self.send_header("X-Error-Code", "RepoNotFound")
            self.end_headers()
            self.wfile.write(body)

        def body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") == "chunked":
                parts = []
                while size := int(self.rfile.readline(), 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(parts)
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def serve(self, method: str) -> None:
            content, path = self.body(), unquote(urlsplit(self.path).path)
            hub.asked.append(f"{method} {path}")
            for part, status in hub.refuse.items():
                if part in path:
                    return self.answer(status, {"error": "the stand-in refuses"})
            if not path.startswith("/blobs/") and self.headers.get("Authorization") != f"Bearer {TOKEN}":
                return self.answer(401, {"error": "Invalid username or password."})
            for pattern, action in ROUTES.items():
                if found := re.fullmatch(pattern, f"{method} {path}"):
                    return self.answer(*action(hub, content, **found.groupdict()))
            return self.answer(404, {"error": f"no route {method} {path}"})

        def do_GET(self) -> None:
            self.serve("GET")

        def do_POST(self) -> None:
            self.serve("POST")

        def do_PUT(self) -> None:
            self.serve("PUT")

    return Handler


def whoami(hub: Hub, content: bytes) -> tuple[int, Any]:
    return 200, {"name": hub.account, "type": "user"}


def create(hub: Hub, content: bytes) -> tuple[int, Any]:
    asked = json.loads(content)
    owner = asked.get("organization") or hub.account
    name = f"{owner}/{asked['name']}"
    if owner != hub.account:
        return 403, {"error": f"You don't have the rights to create a model under the namespace {owner!r}"}
    if name in hub.repos:
        return 409, {"error": "You already created this model repo"}
    hub.repos[name] = Repo(private=asked.get("visibility") == "private")
    return 200, {"url": f"{hub.url}/{name}", "name": name, "id": name}


def info(hub: Hub, content: bytes, repo: str) -> tuple[int, Any]:
    if repo not in hub.repos:
        # What the Hub itself says of a repository that does not exist, so that private ones cannot be told from none.
        return 404, {"error": "Repository not found"}
    found = hub.repos[repo]
    names = [{"rfilename": name} for name in found.branches["main"]]
    return 200, {"id": repo, "sha": OID, "private": found.private, "siblings": names, "tags": found.tags}


def tree(hub: Hub, content: bytes, repo: str, branch: str) -> tuple[int, Any]:
    files = hub.repos[repo].branches[branch]
    return 200, [{"type": "file", "path": name, "size": len(data), "oid": OID} for name, data in files.items()]


def branch(hub: Hub, content: bytes, repo: str, branch: str) -> tuple[int, Any]:
    found = hub.repos[repo]
    if branch in found.branches:
        return 409, {"error": "Reference already exists"}
    found.branches[branch] = dict(found.branches["main"])
    return 200, {}


def preupload(hub: Hub, content: bytes, repo: str, branch: str) -> tuple[int, Any]:
    """Weights go the way of large files, everything else travels inside the commit."""
    files = json.loads(content)["files"]
    mode = {True: "lfs", False: "regular"}
    return 200, {
        "files": [
            {"path": f["path"], "uploadMode": mode[f["path"].endswith("safetensors")], "shouldIgnore": False}
            for f in files
        ]
    }


def batch(hub: Hub, content: bytes, repo: str) -> tuple[int, Any]:
    objects = json.loads(content)["objects"]
    upload = [{**o, "actions": {"upload": {"href": f"{hub.url}/blobs/{o['oid']}", "header": {}}}} for o in objects]
    return 200, {"transfer": "basic", "objects": upload}


def store(hub: Hub, content: bytes, oid: str) -> tuple[int, Any]:
    assert hashlib.sha256(content).hexdigest() == oid
    hub.blobs[oid] = content
    return 200, {}


def commit(hub: Hub, content: bytes, repo: str, branch: str) -> tuple[int, Any]:
    found = hub.repos[repo]
    files = found.branches[branch]
    for line in content.decode().splitlines():
        item = json.loads(line)
        value = item["value"]
        if item["key"] == "file":
            assert value["encoding"] == "base64"
            files[value["path"]] = base64.b64decode(value["content"])
        elif item["key"] == "lfsFile":
            files[value["path"]] = hub.blobs[value["oid"]]
        elif item["key"] == "deletedFile":
            del files[value["path"]]
    found.commits += 1
    # The Hub reads tags off the card.
    found.tags = re.findall(r"^- ([\w-]+)$", files["README.md"].decode(), flags=re.MULTILINE)
    return 200, {"commitUrl": f"{hub.url}/{repo}/commit/{OID}", "commitOid": OID, "success": True}


ROUTES: dict[str, Any] = {
    "GET /api/whoami-v2": whoami,
    "POST /api/repos/create": create,
    "POST /api/validate-yaml": lambda hub, content: (200, {"errors": [], "warnings": []}),
    r"GET /api/models/(?P<repo>[^/]+/[^/]+)": info,
    r"GET /api/models/(?P<repo>[^/]+/[^/]+)/tree/(?P<branch>[^/]+)": tree,
    r"POST /api/models/(?P<repo>[^/]+/[^/]+)/branch/(?P<branch>[^/]+)": branch,
    r"POST /api/models/(?P<repo>[^/]+/[^/]+)/preupload/(?P<branch>[^/]+)": preupload,
    r"POST /api/models/(?P<repo>[^/]+/[^/]+)/commit/(?P<branch>[^/]+)": commit,
    r"POST /(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch": batch,
    r"PUT /blobs/(?P<oid>\w+)": store,
}


@contextmanager
def serving() -> Iterator[Hub]:
    """A running stand-in; stopped at the end of the block."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(hub))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
