"""A Hugging Face Hub on loopback: the few requests that the client makes, over commits that are really kept.

Only Ann has a token. `requests` says what was asked, `fail` which paths get which status.
"""

import base64
import hashlib
import json
from dataclasses import dataclass, field

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

LARGE = (".safetensors", ".parquet", ".npz")
TOKEN = "sesame_ann"
Tree = dict[str, bytes]


def etag_of(path: str, content: bytes) -> str:
    if path.endswith(LARGE):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def refusal(status: int, code: str = "", words: str = "it does not work today") -> HTTPException:
    return HTTPException(status, words, {"X-Error-Code": code, "X-Error-Message": words})


@dataclass
class Repository:
    private: bool
    commits: dict[str, Tree] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def commit(self, tree: Tree) -> str:
        listing = sorted((path, etag_of(path, content)) for path, content in tree.items())
        oid = hashlib.sha1(repr((list(self.commits), listing)).encode()).hexdigest()
        self.commits[oid] = tree
        self.refs["main"] = oid
        return oid

    @property
    def files(self) -> Tree:
        """What main holds."""
        return self.commits[self.refs["main"]]


class Hub:
    """The state of the Hub, and `app`, which answers."""

    def __init__(self):
        self.repositories: dict[str, Repository] = {}
        self.store: dict[str, bytes] = {}  # large files by SHA-256
        self.requests: list[tuple[str, str]] = []  # method, path
        self.fail: dict[str, int] = {}  # a word in the path: the status to answer
        handlers = {
            "PUT /upload/{oid}": self._receive,
            "GET /large/{oid}": self._large,
            "POST /api/validate-yaml": self._validate,
            "POST /api/repos/create": self._create,
            "POST /{owner}/{name}.git/info/lfs/objects/batch": self._places,
            "GET /{owner}/{name}/resolve/{revision}/{path:path}": self._file,
            "GET /api/models/{owner}/{name}": self._describe,
            "GET /api/models/{owner}/{name}/revision/{revision}": self._describe,
            "GET /api/models/{owner}/{name}/tree/{revision}": self._list,
            "POST /api/models/{owner}/{name}/paths-info/{revision}": self._list,
            "POST /api/models/{owner}/{name}/preupload/{revision}": self._preupload,
            "POST /api/models/{owner}/{name}/commit/{revision}": self._commit,
        }
        routes = [
            Route(line.split()[1], self._watched(call), methods=[line.split()[0]]) for line, call in handlers.items()
        ]
        self.app = Starlette(routes=routes)

    def add(self, name: str, files: Tree, private: bool = False) -> str:
        """A commit that was not pushed by our code; the files are all the repository then holds."""
        self.store |= {etag_of(path, content): content for path, content in files.items() if path.endswith(LARGE)}
        return self.repositories.setdefault(name, Repository(private)).commit(dict(files))

    def asked(self, method: str, part: str = "") -> list[str]:
        """Paths of the requests so far by this method that hold a part."""
        return [path for verb, path in self.requests if verb == method and part in path]

    def _watched(self, handler):
        async def answer(request: Request) -> Response:
            self.requests.append((request.method, request.url.path))
            body = await request.body()
            for word, status in self.fail.items():
                if word in request.url.path:
                    raise refusal(status)
            if request.headers.get("Authorization") not in (None, f"Bearer {TOKEN}"):
                raise refusal(401, "", "Invalid credentials in Authorization header")
            return handler(request, body)

        return answer

    def _repository(self, request: Request, write: bool = False) -> Repository:
        known = "Authorization" in request.headers
        repository = self.repositories.get("{owner}/{name}".format(**request.path_params))
        if repository is None or ((repository.private or write) and not known):
            raise refusal(404 if known else 401, "RepoNotFound", "Repository not found")
        return repository

    def _tree(self, request: Request, write: bool = False) -> tuple[str, Tree]:
        repository, revision = self._repository(request, write), request.path_params.get("revision", "main")
        oid = repository.refs.get(revision, revision)
        if oid not in repository.commits:
            raise refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return oid, repository.commits[oid]

    # writing

    def _create(self, request, body):
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.repositories:
            return JSONResponse({"error": "there is one", "url": f"{request.base_url}{name}"}, 409)
        self.repositories[name] = Repository(asked.get("visibility") == "private")
        self.repositories[name].commit({".gitattributes": b"*.safetensors filter=lfs\n"})
        return JSONResponse({"url": f"{request.base_url}{name}", "name": name})

    def _validate(self, _, body):
        return JSONResponse({"errors": [], "warnings": []})

    def _preupload(self, request, body):
        _, tree = self._tree(request, write=True)
        answers = []
        for path in [one["path"] for one in json.loads(body)["files"]]:
            oid = {"oid": etag_of(path, tree[path])} if path in tree else {}
            mode = "lfs" if path.endswith(LARGE) else "regular"
            answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False, **oid})
        return JSONResponse({"files": answers})

    def _places(self, request, body):
        self._repository(request, write=True)
        large, objects = str(request.base_url).replace("127.0.0.1", "localhost"), json.loads(body)["objects"]
        for one in objects:
            if one["oid"] not in self.store:
                one["actions"] = {"upload": {"href": f"{large}upload/{one['oid']}"}}
        return JSONResponse({"transfer": "basic", "objects": objects})

    def _receive(self, request, body):
        self.store[request.path_params["oid"]] = body
        return Response()

    def _commit(self, request, body):
        tree = dict(self._tree(request, write=True)[1])
        for line in map(json.loads, body.splitlines()[1:]):
            path = line["value"]["path"]
            if line["key"] == "deletedFile":
                del tree[path]
            elif line["key"] == "lfsFile":
                tree[path] = self.store[line["value"]["oid"]]
            else:
                tree[path] = base64.b64decode(line["value"]["content"])
        oid = self._repository(request).commit(tree)
        url = str(request.url).replace("/api/models", "").removesuffix("main") + oid
        return JSONResponse({"commitUrl": url, "commitOid": oid, "success": True})

    # reading

    def _describe(self, request, _):
        oid, tree = self._tree(request)
        name = "{owner}/{name}".format(**request.path_params)
        siblings = [{"rfilename": path} for path in tree]
        return JSONResponse({"id": name, "sha": oid, "private": self.repositories[name].private, "siblings": siblings})

    def _list(self, request, body):
        _, tree = self._tree(request)
        found = []
        for path, content in tree.items():
            facts = {"type": "file", "path": path, "size": len(content), "oid": etag_of(path, content)}
            large = (
                {"lfs": {"oid": facts["oid"], "size": len(content), "pointerSize": 134}} if path.endswith(LARGE) else {}
            )
            found.append(facts | large)
        return JSONResponse(found)

    def _file(self, request, _):
        oid, tree = self._tree(request)
        path = request.path_params["path"]
        if path not in tree:
            raise refusal(404, "EntryNotFound", "Entry not found")
        etag, headers = etag_of(path, tree[path]), {"X-Repo-Commit": oid}
        if not path.endswith(LARGE):
            return Response(tree[path], headers={**headers, "ETag": f'"{etag}"'})
        there = str(request.base_url).replace("127.0.0.1", "localhost")  # another host, as on the Hub
        large = {
            "X-Linked-Etag": f'"{etag}"',
            "X-Linked-Size": str(len(tree[path])),
            "Location": f"{there}large/{etag}",
        }
        return Response(b"", 302, headers | large)

    def _large(self, request, _):
        if "Authorization" in request.headers:
            raise refusal(400, "", "a token is told to another host")
        return Response(self.store[request.path_params["oid"]])
