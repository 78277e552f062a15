"""A Hugging Face Hub on 127.0.0.1: a folder per repository, served under the calls that its clients make.

`<root>/datasets/<id>` and `<root>/models/<id>` hold the files of branch main, `<id>@<name>` beside them those
of another branch or tag. A file `.token` in there makes the repository private: who asks must send what it
holds. `huggingface_hub` reads its variables when it is imported: clients run in processes of their own, with
`variables`.
"""
import base64
import contextlib
import hashlib
import json
import os
import re
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote

_REPOSITORY = r"/api/(?P<kind>datasets|models)/(?P<id>[\w.-]+(?:/[\w.-]+)?)"
_REVISION = "/(?P<revision>[^/]+)"
_ROUTES = []   # (method, pattern of the path, function)


def route(method, pattern):
    "Let the function below answer calls of `method` to paths like `pattern`, whose groups are its arguments."
    def add(function):
        _ROUTES.append((method, re.compile(pattern), function))
        return function
    return add


class Missing(Exception):
    "What the Hub answers where there is no such repository, revision or entry: its code for that."


def files_of(folder):
    "The files of a repository, by their name in it."
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != ".token")
    return {path.relative_to(folder).as_posix(): path for path in paths}


def git_hash(path):
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def commit_of(folder):
    "The commit that the files in `folder` make: other files, another commit."
    told = "".join(name + git_hash(path) for name, path in files_of(folder).items())
    return hashlib.sha1(told.encode()).hexdigest()


def entries(folder):
    "Everything in a repository as the Hub tells of it, by name: files and folders."
    found = {}
    for name, path in files_of(folder).items():
        for parent in map(str, list(Path(name).parents)[:-1]):
            found[parent] = {"type": "directory", "path": parent, "size": 0, "oid": "0" * 40}
        found[name] = {"type": "file", "path": name, "size": path.stat().st_size, "oid": git_hash(path)}
    return found


class Call(BaseHTTPRequestHandler):
    "One call of a client."
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments): pass

    def do_GET(self): self.dispatch("GET")

    def do_HEAD(self): self.dispatch("GET")

    def do_POST(self): self.dispatch("POST")

    def dispatch(self, method):
        "Let the function of the first route that fits answer."
        self.place, _, self.query = unquote(self.path).partition("?")
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        tried = [(re.fullmatch(pattern, self.place), function)
                 for verb, pattern, function in _ROUTES if verb == method]
        match, function = next(((match, function) for match, function in tried if match), (None, None))
        try:
            if not match: raise Missing("EntryNotFound")
            function(self, **{key: value or "" for key, value in match.groupdict().items()})
        except Missing as code: self.answer({"error": str(code)}, 404, {"X-Error-Code": str(code)})

    def answer(self, found, status=200, headers=None):
        "Send `found`, bytes or what becomes JSON."
        data = found if isinstance(found, bytes) else json.dumps(found).encode()
        self.server.asked.append((self.command, self.place, status))
        self.send_response(status)
        headers = {"Content-Length": len(data), **(headers or {})}
        for key, value in headers.items(): self.send_header(key, str(value))
        self.end_headers()
        if self.command != "HEAD": self.wfile.write(data)

    def sent(self):
        "The body of the call, JSON or a form."
        if "json" in self.headers.get("Content-Type", ""): return json.loads(self.body)
        return parse_qs(self.body.decode())

    def folder(self, kind, id, revision=""):
        "The folder of a repository's revision, a name or a commit."
        home = self.server.root / (kind.strip("/") or "models") / id
        token = home / ".token"
        if not home.is_dir(): raise Missing("RepoNotFound")
        if token.exists() and self.headers.get("Authorization") != f"Bearer {token.read_text()}":
            raise Missing("RepoNotFound")   # as the Hub answers those who may not know of it
        if revision in ("", "main"): return home
        branch = home.with_name(f"{home.name}@{revision}")
        if branch.is_dir(): return branch
        found = [path for path in (home, *home.parent.glob(f"{home.name}@*")) if commit_of(path) == revision]
        if not found: raise Missing("RevisionNotFound")
        return found[0]


# --- what is read ---

@route("GET", rf"{_REPOSITORY}/tree{_REVISION}/?(?P<path>.*)")
def tree(call, kind, id, revision, path):
    found = entries(call.folder(kind, id, revision))
    deep = parse_qs(call.query).get("recursive", [""])[0].lower() in ("true", "1")
    below = [name for name in found if name.startswith(path and f"{path}/")]
    if path and not below: raise Missing("EntryNotFound")
    call.answer([found[name] for name in below if deep or "/" not in name[len(path):].strip("/")])


@route("GET", rf"{_REPOSITORY}(?:/revision{_REVISION})?")
def info(call, kind, id, revision):
    folder = call.folder(kind, id, revision)
    names = [{"rfilename": name} for name in files_of(folder)]
    call.answer({"_id": "0", "id": id, "sha": commit_of(folder), "siblings": names, "tags": [],
                 "private": False, "gated": False, "disabled": False, "downloads": 0, "likes": 0})


@route("POST", rf"{_REPOSITORY}/paths-info{_REVISION}")
def paths_info(call, kind, id, revision):
    found = entries(call.folder(kind, id, revision))
    call.answer([found[name] for name in call.sent()["paths"] if name in found])


@route("GET", rf"/(?P<kind>datasets/)?(?P<id>[\w.-]+(?:/[\w.-]+)?)/resolve{_REVISION}/(?P<path>.+)")
def file(call, kind, id, revision, path):
    folder = call.folder(kind, id, revision)
    headers = {"X-Repo-Commit": commit_of(folder)}
    missing = {"X-Error-Code": "EntryNotFound", **headers}
    if path not in files_of(folder): return call.answer(b"", 404, missing)
    data = (folder / path).read_bytes()
    headers |= {"ETag": f'"{git_hash(folder / path)}"', "Accept-Ranges": "bytes"}
    part = re.fullmatch(r"bytes=(\d+)-(\d*)", call.headers.get("Range") or "")
    if not part: return call.answer(data, 200, headers)
    first, last = int(part[1]), min(int(part[2] or len(data)), len(data) - 1)
    call.answer(data[first:last + 1], 206, {"Content-Range": f"bytes {first}-{last}/{len(data)}", **headers})


# --- what is written ---

@route("GET", "/api/whoami-v2")
def whoami(call): call.answer({"type": "user", "name": "somebody", "orgs": []})


@route("POST", "/api/validate-yaml")
def validate(call): call.answer({"errors": [], "warnings": []})


@route("POST", "/api/repos/create")
def create(call):
    asked = call.sent()
    id = f"{asked.get('organization') or 'somebody'}/{asked['name']}"
    folder = call.server.root / f"{asked.get('type') or 'model'}s" / id
    status = 409 if folder.is_dir() else 200
    folder.mkdir(parents=True, exist_ok=True)
    if asked.get("private") or asked.get("visibility") == "private":
        (folder / ".token").write_text(call.headers.get("Authorization", "").removeprefix("Bearer "))
    call.answer({"url": f"{call.server.endpoint}/{id}", "name": id, "id": id}, status)


@route("POST", rf"{_REPOSITORY}/branch{_REVISION}")
def branch(call, kind, id, revision):
    home = call.folder(kind, id)
    branch = home.with_name(f"{home.name}@{revision}")
    if branch.exists(): return call.answer({"error": "the branch exists"}, 409)
    shutil.copytree(home, branch)
    call.answer({})


@route("POST", rf"{_REPOSITORY}/preupload{_REVISION}")
def preupload(call, kind, id, revision):
    call.folder(kind, id, revision)
    how = {"uploadMode": "regular", "shouldIgnore": False}
    call.answer({"files": [{"path": file["path"], **how} for file in call.sent()["files"]]})


@route("POST", rf"{_REPOSITORY}/commit{_REVISION}")
def commit(call, kind, id, revision):
    folder = call.folder(kind, id, revision)
    for line in map(json.loads, call.body.splitlines()):
        path = folder / line["value"].get("path", "")
        if line["key"] == "deletedFile": path.unlink()
        if line["key"] != "file": continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(line["value"]["content"]))
    made = commit_of(folder)
    call.answer({"commitUrl": f"{call.server.endpoint}/{id}/commit/{made}", "commitOid": made})


@contextlib.contextmanager
def hub_server(root):
    "A running server over `root`; `endpoint` is its address, `asked` tells how each call was put and ended."
    server = ThreadingHTTPServer(("127.0.0.1", 0), Call)
    server.root, server.asked = Path(root), []
    server.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try: yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def variables(home, endpoint="http://127.0.0.1:9", offline=False, token=""):
    "The environment of a process with its Hub at `endpoint`, its caches in `home`, a token or none."
    others = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    return {**others, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_OFFLINE": "1" if offline else "0", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1",
            "HF_ENDPOINT": endpoint, "HF_TOKEN": token}
