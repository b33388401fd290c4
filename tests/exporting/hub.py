"""A small Hub on this machine: real HTTP, the calls that an upload makes, and what was uploaded."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml


@dataclass
class Hub:
    """What the server was asked, and what it keeps."""

    token: str = "hf_right"
    repositories: dict[str, dict[str, Any]] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    """Large files, by their SHA-256."""
    url: str = ""


@contextmanager
def serving() -> Iterator[Hub]:
    """Runs a Hub on a free port of this machine."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *words: object) -> None:
            pass

        def reply(self, body: object, status: int = 200) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self) -> None:
            self.reply({"error": f"no such thing: {self.command} {self.path}"}, 404)

        def do_PUT(self) -> None:
            hub.objects[self.path.rsplit("/", 1)[-1]] = self.rfile.read(int(self.headers["Content-Length"]))
            self.reply({})

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.headers.get("Authorization") != f"Bearer {hub.token}":
                self.reply({"error": "Invalid username or password."}, 401)
            elif self.path == "/api/repos/create":
                asked = json.loads(body)
                name = f"{asked['organization']}/{asked['name']}"
                hub.repositories[name] = asked
                self.reply({"url": f"{hub.url}/{name}"})
            elif self.path == "/api/validate-yaml":
                front = yaml.safe_load(json.loads(body)["content"].split("---")[1])
                self.reply(
                    {"errors": [] if isinstance(front, dict) else [{"message": "no front matter"}], "warnings": []}
                )
            elif "/preupload/" in self.path:
                files = [file["path"] for file in json.loads(body)["files"]]
                modes = {name: "lfs" if name.endswith((".safetensors", ".gguf")) else "regular" for name in files}
                self.reply({"files": [{"path": n, "uploadMode": m, "shouldIgnore": False} for n, m in modes.items()]})
            elif self.path.endswith("/info/lfs/objects/batch"):
                wanted = json.loads(body)["objects"]
                links = [{**o, "actions": {"upload": {"href": f"{hub.url}/objects/{o['oid']}"}}} for o in wanted]
                self.reply({"transfer": "basic", "objects": links})
            elif "/commit/" in self.path:
                for line in body.splitlines():
                    keep(hub, json.loads(line))
                name = self.path.removeprefix("/api/models/").partition("/commit/")[0]
                self.reply({"commitUrl": f"{hub.url}/{name}/commit/1", "commitOid": "1", "pullRequestUrl": None})
            else:
                self.reply({"error": f"no such thing: {self.command} {self.path}"}, 404)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def keep(hub: Hub, line: dict[str, Any]) -> None:
    """Takes one line of a commit: a small file itself, or a large one by its hash."""
    value = line["value"]
    if line["key"] == "file":
        hub.files[value["path"]] = base64.b64decode(value["content"])
    elif line["key"] == "lfsFile":
        hub.files[value["path"]] = hub.objects[value["oid"]]
