"""The local Hub's routes: what each request of `huggingface_hub` is answered with."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import secrets
import threading
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from .exchange import Answer, Request, Routes, json_answer, ranged
from .store import File, HubError, ObjectStore, Repository, large_file, regular_file

TOKEN = "hf_" + "LocalHubTokenOfTheTests" + "0123456789"
USER, ORGANIZATION = "tester", "org"
PREFIXES = {"": "model", "datasets/": "dataset", "spaces/": "space"}
routes = Routes()


class Hub:
    """The repositories and objects behind the routes.

    Attributes:
        repositories: (kind, id) -> repository.
        objects: store of the large files.
        multipart_over: a larger object is uploaded in parts of this many bytes.
        page: entries per page of a listing.
    """

    def __init__(self, folder: Path) -> None:
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.objects = ObjectStore(folder / "objects")
        self.multipart_over = 1 << 30
        self.page = 1000
        self.endpoint = self.storage = ""  # known when the server listens
        self._signature = secrets.token_hex(8)
        self._parts: dict[str, int] = {}
        self._lock = threading.Lock()

    def answer(self, request: Request) -> Answer:
        try:
            return routes.answer(self, request)
        except HubError as error:
            headers = {"X-Error-Message": str(error), **({"X-Error-Code": error.code} if error.code else {})}
            return json_answer({"error": str(error)}, error.status, **headers)

    def _user(self, request: Request) -> str | None:
        given = request.headers.get("Authorization")
        if given is not None and given != f"Bearer {TOKEN}":
            raise HubError(401, "Invalid credentials in Authorization header")
        return None if given is None else USER

    def _may_write(self, request: Request) -> None:
        if self._user(request) is None:
            raise HubError(401, "Invalid username or password.")

    def _repository(self, request: Request, kind: str, repo: str) -> Repository:
        found = self.repositories.get((kind, repo))
        if found is None or (found.private and self._user(request) is None):
            raise HubError(404 if self._user(request) else 401, "Repository not found", "RepoNotFound")
        return found

    def _signed(self, request: Request) -> None:
        """The large-file storage takes signed addresses and nothing else, as S3 does."""
        if "Authorization" in request.headers:
            raise HubError(400, "Only one auth mechanism allowed")
        if request.query.get("signature") != [self._signature] or not self.storage.endswith(request.headers.get("Host", "")):
            raise HubError(403, "SignatureDoesNotMatch")

    def _storage_url(self, path: str) -> str:
        return f"{self.storage}/{path}?signature={self._signature}"

    # ---- who, and which repositories ----------------------------------------------------------------------------------------

    @routes("GET", "/api/whoami-v2")
    def whoami(self, request: Request) -> Answer:
        self._may_write(request)
        token = {"accessToken": {"displayName": "tests", "role": "write"}, "type": "access_token"}
        return json_answer({"type": "user", "name": USER, "fullname": USER, "orgs": [{"name": ORGANIZATION}], "auth": token})

    @routes("POST", "/api/repos/create")
    def create(self, request: Request) -> Answer:
        self._may_write(request)
        asked = request.json()
        kind, owner = asked.get("type") or "model", asked.get("organization") or USER
        repo_id = f"{owner}/{asked['name']}"
        if owner not in (USER, ORGANIZATION):
            raise HubError(403, f"You don't have the rights to create a {kind} under the namespace {owner}")
        url = f"{self.endpoint}/{next(prefix for prefix, name in PREFIXES.items() if name == kind)}{repo_id}"
        with self._lock:
            if (kind, repo_id) in self.repositories:
                return json_answer({"error": "You already created this repo", "url": url}, 409)
            private = bool(asked.get("private")) or asked.get("visibility") == "private"
            self.repositories[kind, repo_id] = Repository(kind, repo_id, private)
        return json_answer({"url": url, "name": repo_id, "id": hashlib.sha1(url.encode()).hexdigest()[:24]})

    @routes("GET", "/api/{kind}s/{repo}")
    def info(self, request: Request, kind: str, repo: str) -> Answer:
        return self.info_at(request, kind, repo, "main")

    @routes("GET", "/api/{kind}s/{repo}/revision/{revision}")
    def info_at(self, request: Request, kind: str, repo: str, revision: str) -> Answer:
        repository = self._repository(request, kind, repo)
        commit = repository.resolve(revision)
        siblings: list[dict[str, Any]] = [{"rfilename": path} for path in sorted(commit.files)]
        if request.query.get("blobs"):
            for entry in siblings:
                listed = commit.files[entry["rfilename"]].listed("")
                entry |= {"size": listed["size"], "blobId": listed["oid"], **({"lfs": listed["lfs"]} if "lfs" in listed else {})}
        first = next(iter(repository.commits.values()))
        about = {"id": repo, "modelId": repo, "author": repo.split("/")[0], "sha": commit.oid, "private": repository.private}
        about |= {"gated": False, "disabled": False, "tags": [], "downloads": 0, "likes": 0, "siblings": siblings}
        return json_answer({**about, "lastModified": commit.date, "createdAt": first.date, "cardData": _front_matter(commit.files)})

    @routes("GET", "/api/{kind}s/{repo}/refs")
    def refs(self, request: Request, kind: str, repo: str) -> Answer:
        repository = self._repository(request, kind, repo)

        def listed(names: dict[str, str], folder: str) -> list[dict[str, str]]:
            return [{"name": name, "ref": f"refs/{folder}/{name}", "targetCommit": oid} for name, oid in names.items()]

        return json_answer({"branches": listed(repository.branches, "heads"), "tags": listed(repository.tags, "tags"), "converts": []})

    @routes("POST", "/api/{kind}s/{repo}/branch/{branch}")
    def create_branch(self, request: Request, kind: str, repo: str, branch: str) -> Answer:
        self._may_write(request)
        repository = self._repository(request, kind, repo)
        if branch in repository.branches:
            raise HubError(409, f"Reference already exists: {branch}")
        repository.branches[branch] = repository.resolve(request.json().get("startingPoint") or "main").oid
        return json_answer({}, 201)

    @routes("POST", "/api/{kind}s/{repo}/tag/{revision}")
    def create_tag(self, request: Request, kind: str, repo: str, revision: str) -> Answer:
        self._may_write(request)
        repository, name = self._repository(request, kind, repo), request.json()["tag"]
        if name in repository.tags:
            raise HubError(409, f"Tag reference exists already: {name}")
        repository.tags[name] = repository.resolve(revision).oid
        return json_answer({}, 201)

    @routes("GET", "/api/{kind}s/{repo}/commits/{revision}")
    def history(self, request: Request, kind: str, repo: str, revision: str) -> Answer:
        repository = self._repository(request, kind, repo)
        listed = []
        oid: str | None = repository.resolve(revision).oid
        while oid is not None:
            commit = repository.commits[oid]
            about = {"id": oid, "title": commit.title, "message": commit.message, "date": commit.date, "authors": [{"user": USER}]}
            listed.append(about)
            oid = commit.parent
        return self._pages(request, listed)

    # ---- listings -----------------------------------------------------------------------------------------------------------

    @routes("GET", "/api/{kind}s/{repo}/tree/{revision}")
    def root(self, request: Request, kind: str, repo: str, revision: str) -> Answer:
        return self.tree(request, kind, repo, revision, "")

    @routes("GET", "/api/{kind}s/{repo}/tree/{revision}/{path}")
    def tree(self, request: Request, kind: str, repo: str, revision: str, path: str) -> Answer:
        files = self._repository(request, kind, repo).resolve(revision).files
        inside = {name: file for name, file in files.items() if not path or name.startswith(f"{path}/")}
        if path and not inside:
            raise HubError(404, f"Entry not found: {path}", "EntryNotFound")
        recursive = request.query.get("recursive", ["false"])[0].lower() in ("true", "1")
        base = PurePosixPath(path)
        folders = {str(parent) for name in inside for parent in PurePosixPath(name).parents if parent not in (base, *base.parents)}
        entries = [file.listed(name) for name, file in inside.items()] + [_folder(name) for name in folders]
        if not recursive:
            entries = [entry for entry in entries if PurePosixPath(entry["path"]).parent == base]
        return self._pages(request, sorted(entries, key=lambda entry: entry["path"]))

    @routes("POST", "/api/{kind}s/{repo}/paths-info/{revision}")
    def paths_info(self, request: Request, kind: str, repo: str, revision: str) -> Answer:
        files = self._repository(request, kind, repo).resolve(revision).files
        wanted = request.fields().get("paths", [])
        found = [files[path].listed(path) for path in wanted if path in files]
        folders = [_folder(path) for path in wanted if any(name.startswith(f"{path}/") for name in files)]
        return json_answer(found + folders)

    def _pages(self, request: Request, entries: list[Any]) -> Answer:
        start = int(request.query.get("cursor", ["0"])[0])
        after = start + self.page
        if after >= len(entries):
            return json_answer(entries[start:])
        kept = "&".join(f"{name}={value}" for name, values in request.query.items() for value in values if name != "cursor")
        link = f'<{self.endpoint}{request.path}?{kept}&cursor={after}>; rel="next"'
        return json_answer(entries[start:after], Link=link)

    # ---- commits ------------------------------------------------------------------------------------------------------------

    @routes("POST", "/api/validate-yaml")
    def validate_yaml(self, request: Request) -> Answer:
        content = request.json()["content"]
        try:
            _metadata(content)
        except yaml.YAMLError as error:
            return json_answer({"errors": [{"message": f"Invalid metadata in README.md: {error}"}], "warnings": []}, 400)
        return json_answer({"errors": [], "warnings": []})

    @routes("POST", "/api/{kind}s/{repo}/preupload/{revision}")
    def preupload(self, request: Request, kind: str, repo: str, revision: str) -> Answer:
        self._may_write(request)
        repository = self._repository(request, kind, repo)
        there = repository.resolve(revision).files
        answers = []
        for file in request.json()["files"]:
            path = file["path"]
            mode = repository.upload_mode(revision, path, file["size"], base64.b64decode(file["sample"]))
            oid = there[path].etag if path in there else None
            answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return json_answer({"files": answers})

    @routes("POST", "/api/{kind}s/{repo}/commit/{revision}")
    def commit(self, request: Request, kind: str, repo: str, revision: str) -> Answer:
        self._may_write(request)
        repository = self._repository(request, kind, repo)
        header: dict[str, Any] = {}
        changes: dict[str, File | None] = {}
        folders: list[str] = []
        for line in request.body().splitlines():
            entry = json.loads(line)
            value = entry["value"]
            match entry["key"]:
                case "header":
                    header = value
                case "file":
                    changes[value["path"]] = regular_file(base64.b64decode(value["content"]))
                case "lfsFile":
                    changes[value["path"]] = self._large(value["oid"])
                case "deletedFile":
                    changes[value["path"]] = None
                case "deletedFolder":
                    folders.append(value["path"].rstrip("/") + "/")
                case unknown:
                    raise HubError(400, f"unknown operation {unknown}")
        made = repository.commit(revision, header, changes, folders)
        return json_answer({"success": True, "commitOid": made.oid, "commitUrl": f"{self.endpoint}/{repo}/commit/{made.oid}"})

    def _large(self, sha256: str) -> File:
        if sha256 not in self.objects:
            raise HubError(400, f"LFS pointer pointed to a file that does not exist: {sha256}")
        return large_file(sha256, self.objects.path(sha256).stat().st_size)

    # ---- large files --------------------------------------------------------------------------------------------------------

    @routes("POST", "/{prefix}{repo}.git/info/lfs/objects/batch")
    def batch(self, request: Request, prefix: str, repo: str) -> Answer:
        self._may_write(request)
        self._repository(request, PREFIXES[prefix], repo)
        return json_answer({"transfer": "basic", "objects": [self._instructions(one) for one in request.json()["objects"]]})

    def _instructions(self, wanted: dict[str, Any]) -> dict[str, Any]:
        oid, size = wanted["oid"], wanted["size"]
        if oid in self.objects:
            return {"oid": oid, "size": size}
        if size <= self.multipart_over:
            upload: dict[str, Any] = {"href": self._storage_url(f"upload/{oid}")}
        else:
            self._parts[oid] = math.ceil(size / self.multipart_over)
            parts = {f"{part:05d}": self._storage_url(f"upload/{oid}.{part}") for part in range(1, self._parts[oid] + 1)}
            upload = {"href": f"{self.endpoint}/api/complete_multipart", "header": {"chunk_size": str(self.multipart_over), **parts}}
        return {"oid": oid, "size": size, "actions": {"upload": upload, "verify": {"href": f"{self.endpoint}/api/verify_lfs"}}}

    @routes("PUT", "/upload/{name}")
    def upload(self, request: Request, name: str) -> Answer:
        self._signed(request)
        digest = self.objects.put(name, request.stream, request.length)
        if "." not in name:
            self.objects.accept(name, [name])
        return Answer(200, headers={"ETag": f'"{digest}"'})

    @routes("POST", "/api/complete_multipart")
    def complete(self, request: Request) -> Answer:
        asked = request.json()
        oid = asked["oid"]
        if [part["partNumber"] for part in asked["parts"]] != list(range(1, self._parts.get(oid, 0) + 1)):
            raise HubError(400, f"{oid}: not all parts, or not in order")
        self.objects.accept(oid, [f"{oid}.{part['partNumber']}" for part in asked["parts"]])
        return json_answer({})

    @routes("POST", "/api/verify_lfs")
    def verify(self, request: Request) -> Answer:
        self._may_write(request)
        asked = request.json()
        if asked["oid"] not in self.objects or self._large(asked["oid"]).size != asked["size"]:
            raise HubError(404, f"{asked['oid']} was not uploaded")
        return json_answer({})

    # ---- downloads ----------------------------------------------------------------------------------------------------------

    @routes("GET HEAD", "/{prefix}{repo}/resolve/{revision}/{path}")
    def resolve(self, request: Request, prefix: str, repo: str, revision: str, path: str) -> Answer:
        repository = self._repository(request, PREFIXES[prefix], repo)
        commit = repository.resolve(revision)
        headers = {"X-Repo-Commit": commit.oid}
        if path not in commit.files:
            missing = {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}
            return json_answer({"error": "Entry not found"}, 404, **headers, **missing)
        file = commit.files[path]
        if file.sha256 is not None:
            headers |= {"X-Linked-ETag": f'"{file.etag}"', "X-Linked-Size": str(file.size), "ETag": f'"{file.oid}"'}
            return Answer(302, headers=headers | {"Location": self._storage_url(f"objects/{file.sha256}")})
        status, content, described = ranged(file.content, request.headers.get("Range"))
        return Answer(status, content, headers | described | {"ETag": f'"{file.etag}"', "Content-Type": "text/plain; charset=utf-8"})

    @routes("GET HEAD", "/objects/{sha256}")
    def download(self, request: Request, sha256: str) -> Answer:
        self._signed(request)
        status, content, described = ranged(self.objects.path(sha256).read_bytes(), request.headers.get("Range"))
        return Answer(status, content, described | {"ETag": f'"{sha256[:32]}"', "Content-Type": "application/octet-stream"})


def _folder(path: str) -> dict[str, Any]:
    return {"type": "directory", "path": path, "size": 0, "oid": hashlib.sha1(path.encode()).hexdigest()}


def _metadata(readme: str) -> dict[str, Any]:
    parts = readme.split("---\n", 2)
    return (yaml.safe_load(parts[1]) or {}) if len(parts) == 3 and not parts[0].strip() else {}


def _front_matter(files: Any) -> dict[str, Any]:
    return _metadata(files["README.md"].content.decode()) if "README.md" in files else {}
