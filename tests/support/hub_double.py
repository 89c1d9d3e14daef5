"""A double of the Hub on loopback: real HTTP, standard library only, everything in memory, every request kept.

    with HubDouble() as hub:                     # listens on a free port of this machine
        env = {**os.environ, **hub.environment}  # HF_ENDPOINT, HF_TOKEN: huggingface_hub reads them at import
        subprocess.run([...], env=env)
        hub.repos["user/name"].files()           # {"README.md": b"...", ...}
        hub.requests, hub.received               # what clients asked, and every content that they sent

It speaks the routes that huggingface_hub 2.4 uses to create, upload (regular and LFS), list and download; ASSETS.md
section 8 lists them. It does not speak Xet: with hf_xet installed the client asks for a Xet token for every file that
preupload calls lfs, and takes a 404 as the end. So `lfs=False` answers "regular" for every file, and `lfs=True` needs
HF_HUB_DISABLE_XET=1 in the client.

`hub.trouble.append(Trouble(...))` makes it fail: with a status, or by accepting and never answering.
Not covered: multipart LFS, Xet, pull requests, tags, gated repositories, copies.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_" + "doubleDOUBLE0123456789doubleDOUBLE01"
FIRST_FILE = {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"}


@dataclass
class Trouble:
    """What goes wrong: requests whose "METHOD path" matches `where` get `status`, or nothing at all if it is None."""

    where: str = ".*"
    status: int | None = 500
    body: bytes = b'{"error": "planned trouble"}'
    headers: dict[str, str] = field(default_factory=dict)
    times: int = 10**9  # how often


@dataclass
class Seen:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Repo:
    private: bool = False
    branches: dict[str, str] = field(default_factory=dict)  # branch: commit
    commits: dict[str, dict[str, tuple[bytes, bool]]] = field(default_factory=dict)  # commit: {path: (bytes, is lfs)}

    def commit(self, branch: str, files: dict[str, tuple[bytes, bool]]) -> str:
        text = repr((branch, self.branches.get(branch), sorted((p, _sha1(c)) for p, (c, _) in files.items())))
        name = hashlib.sha1(text.encode()).hexdigest()
        self.commits[name], self.branches[branch] = dict(files), name
        return name

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return {path: content for path, (content, _) in self.commits[self.branches[revision]].items()}


class Answer(Exception):
    """Ends a route: status, JSON or bytes, headers."""

    def __init__(self, status: int, body: Any = None, headers: dict[str, str] | None = None):
        self.status, self.headers = status, headers or {}
        self.body = body if isinstance(body, bytes) else json.dumps({} if body is None else body).encode()


def _missing(code: str) -> Answer:
    # Without X-Error-Code the client raises another class of error.
    return Answer(404, {"error": f"{code} (double)"}, {"X-Error-Code": code})


class HubDouble:
    def __init__(self, *, lfs: bool = False, token: str = TOKEN, user: str = "user", orgs: tuple[str, ...] = ("org",)):
        self.lfs, self.token, self.user, self.orgs = lfs, token, user, orgs
        self.repos: dict[str, Repo] = {}  # "user/name" of a model, "datasets/user/name" of a data set
        self.objects: dict[str, bytes] = {}  # LFS contents by sha256
        self.requests: list[Seen] = []
        self.received: list[bytes] = []  # every content that a client sent, decoded
        self.trouble: list[Trouble] = []
        self.lock = threading.RLock()
        self.closing = threading.Event()
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> HubDouble:
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()

    @property
    def environment(self) -> dict[str, str]:
        xet = {"HF_HUB_DISABLE_XET": "1"} if self.lfs else {}
        return {"HF_ENDPOINT": self.url, "HF_TOKEN": self.token, "HF_HUB_OFFLINE": "0", **xet}

    def count(self, where: str) -> int:
        """How many requests had a "METHOD path" that matches."""
        return sum(bool(re.match(where, f"{seen.method} {seen.path}")) for seen in self.requests)

    # --- what the routes do; each raises its Answer ------------------------------------------------------------

    def answer(self, seen: Seen, query: dict[str, list[str]]) -> None:
        route, authorized = f"{seen.method} {seen.path}", self._authorized(seen)
        for pattern, name in ROUTES:
            if match := re.fullmatch(pattern, route):
                parts = {key: unquote(value) for key, value in match.groupdict().items() if value is not None}
                if "repo" in parts:
                    kind = {None: "", "models": "", "models/": ""}.get(parts.pop("kind", None), "datasets/")
                    parts["repo"] = kind + parts["repo"]
                    found = self.repos.get(parts["repo"])
                    if found is None or (found.private and not authorized):
                        raise _missing("RepoNotFound")
                    if seen.method == "POST" and name not in ("verify", "paths_info") and not authorized:
                        raise Answer(401, {"error": "Invalid credentials in Authorization header"})
                getattr(self, "_" + name)(seen, query, **parts)
        raise Answer(404, {"error": f"the double has no route {route}"})

    def _authorized(self, seen: Seen) -> bool:
        given = seen.headers.get("authorization")
        if given is not None and given != f"Bearer {self.token}":
            raise Answer(401, {"error": "Invalid credentials in Authorization header"})
        return given is not None

    def _whoami(self, seen: Seen, query: Any) -> None:
        if not self._authorized(seen):
            raise Answer(401, {"error": "Invalid username or password."})
        orgs = [{"name": org, "type": "org"} for org in self.orgs]
        raise Answer(
            200,
            {
                "name": self.user,
                "type": "user",
                "orgs": orgs,
                "auth": {"type": "access_token", "accessToken": {"displayName": "x", "role": "write"}},
            },
        )

    def _create(self, seen: Seen, query: Any) -> None:
        asked = json.loads(seen.body)
        namespace = asked.get("organization") or self.user
        if not self._authorized(seen):
            raise Answer(401, {"error": "Invalid username or password."})
        if namespace not in (self.user, *self.orgs):
            words = f'You don\'t have the rights to create a model under the namespace "{namespace}"'
            raise Answer(403, {"error": words})
        kind = "datasets/" if asked.get("type") == "dataset" else ""
        name = f"{kind}{namespace}/{asked['name']}"
        if name in self.repos:
            raise Answer(409, {"url": f"{self.url}/{name}", "error": "You already created this repo"})
        self.repos[name] = Repo(private=asked.get("visibility") == "private")
        self.repos[name].commit("main", {path: (content, False) for path, content in FIRST_FILE.items()})
        raise Answer(200, {"url": f"{self.url}/{name}", "name": name, "id": name})

    def _delete(self, seen: Seen, query: Any) -> None:
        asked = json.loads(seen.body)
        kind = "datasets/" if asked.get("type") == "dataset" else ""
        self.repos.pop(f"{kind}{asked.get('organization') or self.user}/{asked['name']}", None)
        raise Answer(200)

    def _validate(self, seen: Seen, query: Any) -> None:
        content = json.loads(seen.body)["content"]
        front = re.match(r"---\n(.*?)\n---\n", content, re.S)
        base = re.search(r"(?m)^base_model: (.*)$", front[1]) if front else None
        if base and (base[1].startswith(("/", ".")) or base[1].count("/") > 1):  # the Hub wants an id there
            raise Answer(400, {"errors": [{"message": f'"base_model" with value "{base[1]}" is not valid'}]})
        raise Answer(200, {"errors": [], "warnings": []})

    def _branch(self, seen: Seen, query: Any, repo: str, revision: str) -> None:
        held = self.repos[repo]
        if revision in held.branches:
            raise Answer(409, {"error": "Reference already exists"})
        held.branches[revision] = held.branches["main"]
        raise Answer(200)

    def _preupload(self, seen: Seen, query: Any, repo: str, revision: str) -> None:
        held, files = self._tree_at(repo, revision), []
        for asked in json.loads(seen.body)["files"]:
            large = self.lfs and (asked["path"].endswith((".safetensors", ".parquet")) or asked["size"] > 10**6)
            content, is_lfs = held.get(asked["path"], (b"", False))
            oid = _oid(content, is_lfs) if asked["path"] in held else None
            files.append(
                {"path": asked["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": oid}
            )
        raise Answer(200, {"files": files})

    def _lfs_batch(self, seen: Seen, query: Any, repo: str) -> None:
        objects = []
        for asked in json.loads(seen.body)["objects"]:
            objects.append({"oid": asked["oid"], "size": asked["size"]})
            if asked["oid"] not in self.objects:
                objects[-1]["actions"] = {
                    "upload": {"href": f"{self.url}/lfs/{asked['oid']}"},
                    "verify": {"href": f"{self.url}/lfs/verify/{repo}"},
                }
        raise Answer(200, {"transfer": "basic", "objects": objects})

    def _lfs_put(self, seen: Seen, query: Any, oid: str) -> None:
        if hashlib.sha256(seen.body).hexdigest() != oid:
            raise Answer(400, {"error": "sha256 differs"})
        self.objects[oid] = seen.body
        self.received.append(seen.body)
        raise Answer(200)

    def _verify(self, seen: Seen, query: Any, repo: str) -> None:
        asked = json.loads(seen.body)
        raise Answer(200 if len(self.objects.get(asked["oid"], b"")) == asked["size"] else 404)

    def _commit(self, seen: Seen, query: Any, repo: str, revision: str) -> None:
        files, held = dict(self._tree_at(repo, revision)), self.repos[repo]
        for line in seen.body.splitlines():
            entry = json.loads(line)
            key, value = entry["key"], entry["value"]
            if key == "header" and value.get("parentCommit", held.branches[revision]) != held.branches[revision]:
                raise Answer(412, {"error": "A commit has happened since"})
            if key == "file":
                files[value["path"]] = (base64.b64decode(value["content"]), False)
                self.received.append(files[value["path"]][0])
            if key == "lfsFile":
                files[value["path"]] = (self.objects[value["oid"]], True)
            if key in ("deletedFile", "deletedFolder"):
                gone = value["path"].rstrip("/")
                files = {path: kept for path, kept in files.items() if path != gone and not path.startswith(gone + "/")}
        name = held.commit(revision, files)
        raise Answer(
            200, {"success": True, "commitOid": name, "commitUrl": f"{self.url}/{repo}/commit/{name}", "hookOutput": ""}
        )

    def _info(self, seen: Seen, query: Any, repo: str, revision: str = "main") -> None:
        files, held = self._tree_at(repo, revision), self.repos[repo]
        commit, siblings = held.branches.get(revision, revision), [{"rfilename": path} for path in sorted(files)]
        raise Answer(
            200,
            {
                "_id": "0",
                "id": repo.removeprefix("datasets/"),
                "sha": commit,
                "private": held.private,
                "tags": [],
                "downloads": 0,
                "likes": 0,
                "disabled": False,
                "gated": False,
                "siblings": siblings,
            },
        )

    def _refs(self, seen: Seen, query: Any, repo: str) -> None:
        branches = [
            {"name": name, "ref": f"refs/heads/{name}", "targetCommit": commit}
            for name, commit in self.repos[repo].branches.items()
        ]
        raise Answer(200, {"branches": branches, "converts": [], "tags": []})

    def _tree(self, seen: Seen, query: Any, repo: str, revision: str, path: str = "") -> None:
        files, path = self._tree_at(repo, revision), path.strip("/")
        inside = {name: held for name, held in files.items() if not path or name.startswith(path + "/")}
        if path and not inside:
            raise _missing("EntryNotFound")  # load_dataset relies on it
        if query.get("recursive", ["false"])[0].lower() not in ("true", "1"):
            inside = {name: held for name, held in inside.items() if "/" not in name[len(path) + bool(path) :]}
        raise Answer(200, [_entry(name, *held) for name, held in sorted(inside.items())])

    def _paths_info(self, seen: Seen, query: Any, repo: str, revision: str) -> None:
        files = self._tree_at(repo, revision)
        form = seen.headers.get("content-type", "").startswith("application/x-www-form-urlencoded")
        asked = parse_qs(seen.body.decode())["paths"] if form else json.loads(seen.body)["paths"]
        raise Answer(200, [_entry(path, *files[path]) for path in asked if path in files])

    def _resolve(self, seen: Seen, query: Any, repo: str, revision: str, path: str) -> None:
        files, held = self._tree_at(repo, revision), self.repos[repo]
        if path not in files:
            raise _missing("EntryNotFound")
        content, is_lfs = files[path]
        oid = _oid(content, is_lfs)
        headers = {
            "ETag": f'"{oid}"',
            "X-Repo-Commit": held.branches.get(revision, revision),
            "Content-Type": "application/octet-stream",
            "Accept-Ranges": "bytes",
        }
        if is_lfs:
            headers |= {"X-Linked-Etag": f'"{oid}"', "X-Linked-Size": str(len(content))}
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", seen.headers.get("range", "")):
            first, last = int(match[1]), int(match[2] or len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            raise Answer(206, content[first : last + 1], headers)
        raise Answer(200, content, headers)

    def _tree_at(self, repo: str, revision: str) -> dict[str, tuple[bytes, bool]]:
        held = self.repos[repo]
        files = held.commits.get(held.branches.get(revision, revision))
        if files is None:
            raise _missing("RevisionNotFound")
        return files


ONE = r"(?P<repo>[\w.-]+/[\w.-]+)"
API = rf"/api/(?P<kind>models|datasets)/{ONE}"
WEB = rf"/(?P<kind>datasets/)?{ONE}"
REV = r"(?P<revision>[^/]+)"
ROUTES: tuple[tuple[str, str], ...] = (
    ("GET /api/whoami-v2", "whoami"),
    ("POST /api/repos/create", "create"),
    ("DELETE /api/repos/delete", "delete"),
    ("POST /api/validate-yaml", "validate"),
    (rf"POST {API}/branch/{REV}", "branch"),
    (rf"POST {API}/preupload/{REV}", "preupload"),
    (rf"POST {API}/commit/{REV}", "commit"),
    (rf"POST {API}/paths-info/{REV}", "paths_info"),
    (rf"GET {API}/refs", "refs"),
    (rf"GET {API}/tree/{REV}(?P<path>/.*)?", "tree"),
    (rf"GET {API}/revision/{REV}", "info"),
    (rf"GET {API}", "info"),
    (rf"POST {WEB}\.git/info/lfs/objects/batch", "lfs_batch"),
    (r"PUT /lfs/(?P<oid>[0-9a-f]{64})", "lfs_put"),
    (rf"POST /lfs/verify/{ONE}", "verify"),
    (rf"(?:GET|HEAD) {WEB}/resolve/{REV}/(?P<path>.+)", "resolve"),
)  # fmt: skip


def _sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _oid(content: bytes, is_lfs: bool) -> str:
    return hashlib.sha256(content).hexdigest() if is_lfs else _sha1(content)


def _entry(path: str, content: bytes, is_lfs: bool) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": path, "oid": _sha1(content), "size": len(content)}
    if is_lfs:
        entry["lfs"] = {"oid": _oid(content, True), "size": len(content), "pointerSize": 134}
    return entry


class _Handler(BaseHTTPRequestHandler):
    hub: HubDouble
    protocol_version = "HTTP/1.1"

    def _serve(self) -> None:
        url, hub = urlsplit(self.path), self.hub
        body = self._body()
        headers = {key.lower(): value for key, value in self.headers.items()}
        seen = Seen(self.command, url.path, headers, body)
        with hub.lock:
            hub.requests.append(seen)
            trouble = next(
                (one for one in hub.trouble if one.times > 0 and re.match(one.where, f"{seen.method} {seen.path}")),
                None,
            )
            if trouble:
                trouble.times -= 1
        if trouble and trouble.status is None:
            hub.closing.wait()  # accepted, never answered
            self.close_connection = True
            return
        try:
            if trouble:
                raise Answer(trouble.status or 500, trouble.body, trouble.headers)
            with hub.lock:
                hub.answer(seen, parse_qs(url.query))
        except Answer as answer:
            self._send(answer)
        except Exception as error:  # a fault of the double itself: visible in the client's message
            self._send(Answer(500, {"error": f"the double failed: {type(error).__name__}: {error}"}))

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _send(self, answer: Answer) -> None:
        self.send_response(answer.status)
        for key, value in {"Content-Type": "application/json", **answer.headers}.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    def log_message(self, *_: object) -> None:
        """Silent: the tests read hub.requests."""
