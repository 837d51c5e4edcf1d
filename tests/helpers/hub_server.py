"""A hub on this machine that speaks as Hugging Face's does to its client."""

import base64
import contextlib
import hashlib
import http.server
import json
import threading
import urllib.parse

import huggingface_hub
from huggingface_hub import constants

from align_keras.models import handles

COMMIT = "1f" * 20


class Hub(http.server.ThreadingHTTPServer):
    """Repositories by name, each a dict from file name to bytes."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories = {}
        self.private = set()
        self.asked = []
        self.tokens = set()
        self.address = f"http://127.0.0.1:{self.server_address[1]}"

    def add(self, name, directory):
        """Publish the files of a directory."""
        self.repositories[name] = {
            path.relative_to(directory).as_posix(): path.read_bytes()
            for path in directory.rglob("*")
            if path.is_file()
        }


class _Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self._file(body=False)

    def do_GET(self):
        if self.path.startswith("/api/models/"):
            name = "/".join(self.path.split("?")[0].split("/")[3:5])
            files = self.server.repositories[name]
            if "/tree/" in self.path:
                self._answer(
                    [
                        {
                            "type": "file",
                            "path": path,
                            "size": len(contents),
                            "oid": COMMIT,
                        }
                        for path, contents in files.items()
                    ]
                )
                return
            siblings = [{"rfilename": path} for path in files]
            self._answer(
                {
                    "id": name,
                    "sha": COMMIT,
                    "siblings": siblings,
                    "private": name in self.server.private,
                }
            )
        elif self.path.startswith("/api/"):
            self._answer({"name": "me", "type": "user"})
        else:
            self._file(body=True)

    def _file(self, body):
        repository, _, rest = self.path.lstrip("/").partition("/resolve/")
        name = urllib.parse.unquote(rest.partition("/")[2])
        if body:
            self.server.asked.append((repository, name))
        files = self.server.repositories.get(repository)
        if files is None or name not in files:
            kind = "EntryNotFound" if files is not None else "RepoNotFound"
            self.send_response(404)
            self.send_header("X-Error-Code", kind)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        contents = files[name]
        self.send_response(200)
        # Large files are known by the digest of what they hold.
        digest = hashlib.sha256(contents).hexdigest()
        self.send_header("ETag", f'"{digest}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(contents)))
        self.end_headers()
        if body:
            self.wfile.write(contents)

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.tokens.add(self.headers.get("Authorization"))
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            owner = asked.get("organization") or "me"
            name = f"{owner}/{asked['name']}"
            hidden = asked.get("visibility") == "private" or asked.get(
                "private"
            )
            if hidden and name not in self.server.repositories:
                self.server.private.add(name)
            self.server.repositories.setdefault(name, {})
            self._answer({"url": f"{self.server.address}/{name}"})
            return
        repository, _, action = (
            self.path.removeprefix("/api/models/")
            .rpartition("/")[0]
            .rpartition("/")
        )
        if action == "preupload":
            files = json.loads(body)["files"]
            self._answer(
                {
                    "files": [
                        {
                            "path": file["path"],
                            "uploadMode": "regular",
                            "shouldIgnore": False,
                        }
                        for file in files
                    ]
                }
            )
        elif action == "commit":
            files = self.server.repositories[repository]
            for line in body.splitlines():
                asked = json.loads(line)
                if asked["key"] == "file":
                    value = asked["value"]
                    files[value["path"]] = base64.b64decode(value["content"])
            url = f"{self.server.address}/{repository}/commit/{COMMIT}"
            self._answer(
                {"success": True, "commitUrl": url, "commitOid": COMMIT}
            )
        else:
            self._answer({})

    def _answer(self, answer):
        contents = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(contents)))
        self.end_headers()
        self.wfile.write(contents)


@contextlib.contextmanager
def hub_running():
    hub = Hub()
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()


def use(hub, monkeypatch, cache):
    """Let the client of this process know that hub alone, and that cache."""
    monkeypatch.setattr(constants, "ENDPOINT", hub.address)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(
        constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        hub.address + "/{repo_id}/resolve/{revision}/{filename}",
    )
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    forget()


def forget():
    """Ask anew whether the hub is there."""
    handles._no_network.cache_clear()
    handles._check.cache_clear()
    huggingface_hub.close_session()
