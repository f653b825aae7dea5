"""A Hugging Face Hub on loopback: the few endpoints that the client uses, over commits that are really kept.

It refuses what the Hub refuses: unknown tokens, private repositories to strangers, writing without the right to, a
commit whose large files never arrived. `cut` breaks transfers off; `requests` says what was asked.
"""

import base64
import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

LARGE = (".safetensors", ".parquet", ".npz")


class RefusedError(Exception):
    """An answer that is none: status, the Hub's code and its words."""


@dataclass
class File:
    content: bytes
    large: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def etag(self) -> str:
        blob = hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()
        return self.sha256 if self.large else blob


@dataclass
class Repository:
    private: bool
    commits: dict[str, dict[str, File]] = field(default_factory=dict)  # each a whole tree
    refs: dict[str, str] = field(default_factory=dict)

    def commit(self, tree: dict[str, File]) -> str:
        listing = sorted((path, file.sha256) for path, file in tree.items())
        oid = hashlib.sha1(repr((list(self.commits), listing)).encode()).hexdigest()
        self.commits[oid] = tree
        self.refs["main"] = oid
        return oid

    @property
    def files(self) -> dict[str, bytes]:
        """What main holds."""
        return {path: file.content for path, file in self.commits[self.refs["main"]].items()}


class Hub:
    """The state of the Hub, and its server; use as a context manager."""

    def __init__(self):
        self.users = {"sesame_ann": ("ann", "write"), "sesame_reader": ("ann", "read"), "sesame_bob": ("bob", "write")}
        self.repositories: dict[str, Repository] = {}
        self.store: dict[str, bytes] = {}  # large files by SHA-256, whether a commit names them or not
        self.requests: list[tuple[str, str, str | None]] = []  # method, path, range
        self.cut: dict[str, int] = {}  # "GET" or "PUT", and a SHA-256 or a file: bytes after which it breaks off
        self.cut_once = False
        self.fail: dict[str, int] = {}  # a word in the path: the status to answer
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.large_url = f"http://localhost:{self.server.server_address[1]}"  # another host, as on the Hub

    def __enter__(self):
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def add(self, name: str, files: dict[str, bytes], private: bool = False) -> str:
        """A commit that was not pushed by our code; the files are all the repository then holds."""
        repository = self.repositories.setdefault(name, Repository(private))
        tree = {path: File(content, path.endswith(LARGE)) for path, content in files.items()}
        self.store |= {file.sha256: file.content for file in tree.values() if file.large}
        return repository.commit(tree)

    def asked(self, method: str, part: str = "") -> list[str]:
        """Paths of the requests so far by this method that hold a part."""
        return [path for verb, path, _ in self.requests if verb == method and part in path]

    def cut_at(self, what: str) -> int | None:
        """After how many bytes a transfer breaks off, if it does."""
        return self.cut.pop(what, None) if self.cut_once else self.cut.get(what)


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        self._answer()

    def do_HEAD(self):
        self._answer()

    def do_POST(self):
        self._answer()

    def do_PUT(self):
        self._answer()

    def _answer(self):
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path, self.headers.get("Range")))
        try:
            for word, status in self.hub.fail.items():
                if word in path:
                    self._read()
                    raise RefusedError(status, "", "it does not work today")
            self._route(path)
        except RefusedError as refused:
            status, code, words = refused.args
            headers = {"X-Error-Code": code, "X-Error-Message": words, "Connection": "close"}  # the body may be unread
            self._send(status, json.dumps({"error": words}).encode(), headers)

    def _route(self, path: str):
        parts = path.strip("/").split("/")
        match [self.command, *parts]:
            case ["PUT", "upload", oid]:
                self._receive(oid)
            case ["GET" | "HEAD", "large", oid]:
                if "Authorization" in self.headers:
                    raise RefusedError(400, "", "a token is told to another host")
                self._send_file(self.hub.store[oid], oid, {})
            case ["GET", "api", "whoami-v2"]:
                user, _ = self._user(needed=True)
                self._json({"type": "user", "name": user, "auth": {"type": "access_token"}})
            case ["POST", "api", "validate-yaml"]:
                self._validate(json.loads(self._read())["content"])
            case ["POST", "api", "repos", "create"]:
                self._create(json.loads(self._read()))
            case ["POST", owner, name, "info", "lfs", "objects", "batch"]:
                asked = json.loads(self._read())
                self._repository(f"{owner}/{name.removesuffix('.git')}", write=True)
                self._json({"transfer": "basic", "objects": [self._place(one) for one in asked["objects"]]})
            case ["GET" | "HEAD", owner, name, "resolve", revision, *file]:
                self._resolve(f"{owner}/{name}", revision, "/".join(file))
            case ["GET", "api", "models", owner, name, *rest]:
                self._describe(f"{owner}/{name}", *rest)
            case ["POST", "api", "models", owner, name, what, revision]:
                body = self._read()
                repository = self._repository(f"{owner}/{name}", write=what != "paths-info")
                {"paths-info": self._paths, "preupload": self._preupload, "commit": self._commit}[what](
                    repository, revision, body
                )
            case _:
                raise RefusedError(404, "", f"there is no {self.command} {path}")

    # who asks, and for what

    def _user(self, needed: bool = False) -> tuple[str | None, str]:
        header = self.headers.get("Authorization")
        if header is None and not needed:
            return None, "none"
        user = self.hub.users.get((header or "").removeprefix("Bearer "))
        if user is None:
            raise RefusedError(401, "", "Invalid credentials in Authorization header")
        return user

    def _repository(self, name: str, write: bool = False) -> Repository:
        user, role = self._user(needed=write)
        repository = self.hub.repositories.get(name)
        if repository is None or (repository.private and user != name.partition("/")[0]):
            raise RefusedError(401 if user is None else 404, "RepoNotFound", "Repository not found")
        if write and (role != "write" or user != name.partition("/")[0]):
            raise RefusedError(403, "", f"you must have write access to {name}")
        return repository

    def _revision(self, repository: Repository, revision: str) -> tuple[str, dict[str, File]]:
        oid = repository.refs.get(revision, revision)
        if oid not in repository.commits:
            raise RefusedError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return oid, repository.commits[oid]

    # writing

    def _create(self, asked: dict):
        user, role = self._user(needed=True)
        owner = asked["organization"] or user
        if role != "write" or owner != user:
            raise RefusedError(403, "", f"you have no rights in the namespace {owner}")
        name = f"{owner}/{asked['name']}"
        if name in self.hub.repositories:
            self._send(409, json.dumps({"error": "there is one", "url": f"{self.hub.url}/{name}"}).encode(), {})
            return
        private = asked.get("visibility") == "private"
        self.hub.repositories[name] = Repository(private)
        self.hub.repositories[name].commit({".gitattributes": File(b"*.safetensors filter=lfs\n", False)})
        self._json({"url": f"{self.hub.url}/{name}", "name": name})

    def _validate(self, text: str):
        _, head, _ = text.split("---\n", 2)
        wrong = [] if isinstance(yaml.safe_load(head), dict) else [{"message": "metadata is no mapping"}]
        self._json({"errors": wrong, "warnings": []})

    def _preupload(self, repository: Repository, revision: str, body: bytes):
        _, tree = self._revision(repository, revision)
        answers = []
        for one in json.loads(body)["files"]:
            mode = "lfs" if one["path"].endswith(LARGE) else "regular"
            held = tree.get(one["path"])
            answers.append({"path": one["path"], "uploadMode": mode, "shouldIgnore": False})
            if held is not None:
                answers[-1]["oid"] = held.etag
        self._json({"files": answers})

    def _place(self, one: dict) -> dict:
        if one["oid"] in self.hub.store:
            return one
        return {**one, "actions": {"upload": {"href": f"{self.hub.large_url}/upload/{one['oid']}"}}}

    def _receive(self, oid: str):
        length = int(self.headers["Content-Length"])
        stop = self.hub.cut_at(f"PUT {oid}")
        content = self.rfile.read(length if stop is None else min(stop, length))
        if len(content) < length:
            self._hang_up()
            return
        if hashlib.sha256(content).hexdigest() != oid:
            raise RefusedError(400, "", "this is not what was announced")
        self.hub.store[oid] = content
        self._send(200, b"", {})

    def _commit(self, repository: Repository, revision: str, body: bytes):
        tree = dict(self._revision(repository, revision)[1])
        lines = [json.loads(line) for line in body.splitlines()]
        assert lines[0]["key"] == "header" and lines[0]["value"]["summary"]
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "lfsFile":
                if value["oid"] not in self.hub.store:
                    raise RefusedError(400, "", f"{value['path']} was never uploaded")
                tree[value["path"]] = File(self.hub.store[value["oid"]], True)
            elif line["key"] == "deletedFile":
                del tree[value["path"]]
            else:
                assert line["key"] == "file" and value["encoding"] == "base64"
                tree[value["path"]] = File(base64.b64decode(value["content"]), False)
        oid = repository.commit(tree)
        name = next(name for name, known in self.hub.repositories.items() if known is repository)
        self._json({"commitUrl": f"{self.hub.url}/{name}/commit/{oid}", "commitOid": oid, "success": True})

    # reading

    def _paths(self, repository: Repository, revision: str, body: bytes):
        _, tree = self._revision(repository, revision)
        found = []
        for path in parse_qs(body.decode())["paths"]:
            if path in tree:
                file = tree[path]
                size = len(file.content)
                large = {"lfs": {"oid": file.sha256, "size": size, "pointerSize": 134}} if file.large else {}
                found.append({"type": "file", "path": path, "size": size, "oid": file.etag, **large})
        self._json(found)

    def _describe(self, name: str, what: str = "revision", revision: str = "main", *folder: str):
        repository = self._repository(name)
        oid, tree = self._revision(repository, revision)
        files = [path for path in tree if path.startswith("/".join(folder))]
        if not files:
            raise RefusedError(404, "EntryNotFound", f"{folder} does not exist")
        if what == "tree":
            self._json([{"type": "file", "path": path, "size": 0, "oid": tree[path].etag} for path in files])
        else:
            siblings = [{"rfilename": path} for path in files]
            self._json({"id": name, "sha": oid, "private": repository.private, "siblings": siblings})

    def _resolve(self, name: str, revision: str, path: str):
        oid, tree = self._revision(self._repository(name), revision)
        if path not in tree:
            raise RefusedError(404, "EntryNotFound", "Entry not found")
        file = tree[path]
        headers = {"X-Repo-Commit": oid}
        if file.large:
            large = {"X-Linked-Etag": f'"{file.etag}"', "X-Linked-Size": str(len(file.content))}
            self._send(302, b"", {**headers, **large, "Location": f"{self.hub.large_url}/large/{file.sha256}"})
        else:
            self._send_file(file.content, path, {**headers, "ETag": f'"{file.etag}"'})

    # bytes

    def _read(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _json(self, content, headers: dict[str, str] | None = None):
        self._send(200, json.dumps(content).encode(), {"Content-Type": "application/json", **(headers or {})})

    def _send_file(self, content: bytes, name: str, headers: dict[str, str]):
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").rstrip("-"))
        stop = self.hub.cut_at(f"GET {name}") if self.command == "GET" else None
        if start:
            headers = {**headers, "Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
        self._send(206 if start else 200, content[start:], headers, stop)

    def _send(self, status: int, content: bytes, headers: dict[str, str], stop: int | None = None):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[:stop])
        if stop is not None and stop < len(content):
            self._hang_up()

    def _hang_up(self):
        self.wfile.flush()
        self.close_connection = True
