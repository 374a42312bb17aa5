"""What the local Hub keeps: repositories as chains of commits, the files they name, and the large objects."""

from __future__ import annotations

import hashlib
import itertools
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, BinaryIO

GITATTRIBUTES = "".join(
    f"{pattern} filter=lfs diff=lfs merge=lfs -text\n"
    for pattern in ("*.arrow", "*.bin", "*.gz", "*.jpg", "*.parquet", "*.pkl", "*.png", "*.pt", "*.safetensors", "*.zip")
)
REGULAR_LIMIT = 10_000_000  # bytes; a larger file goes to large-file storage whatever it is called


class HubError(Exception):
    """An answer that is not a success: HTTP status, the code in X-Error-Code, the message in X-Error-Message."""

    def __init__(self, status: int, message: str, code: str = "") -> None:
        super().__init__(message)
        self.status, self.code = status, code


@dataclass(frozen=True)
class File:
    """One file of a commit. oid: git's SHA-1 of the blob (of the pointer, where it is large); sha256: its object in the store of these."""

    oid: str
    size: int
    content: bytes = field(default=b"", repr=False)
    sha256: str | None = None

    @property
    def etag(self) -> str:
        return self.sha256 or self.oid

    def listed(self, path: str) -> dict[str, Any]:
        entry: dict[str, Any] = {"type": "file", "path": path, "size": self.size, "oid": self.oid}
        if self.sha256 is not None:
            entry["lfs"] = {"oid": self.sha256, "size": self.size, "pointerSize": len(pointer(self.sha256, self.size))}
        return entry


@dataclass(frozen=True)
class Commit:
    oid: str
    parent: str | None
    title: str
    message: str
    date: str
    files: Mapping[str, File]


def pointer(sha256: str, size: int) -> bytes:
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def regular_file(content: bytes) -> File:
    return File(hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest(), len(content), content)


def large_file(sha256: str, size: int) -> File:
    content = pointer(sha256, size)
    return File(regular_file(content).oid, size, sha256=sha256)


class Repository:
    """Branches and tags over immutable commits; a commit comes into being as a whole or not at all."""

    def __init__(self, kind: str, repo_id: str, private: bool) -> None:
        self.kind, self.repo_id, self.private = kind, repo_id, private
        self.commits: dict[str, Commit] = {}
        self.branches: dict[str, str] = {}
        self.tags: dict[str, str] = {}
        self._lock = threading.Lock()
        self._clock = itertools.count()
        self._append("main", None, "initial commit", "", {".gitattributes": regular_file(GITATTRIBUTES.encode())})

    def resolve(self, revision: str) -> Commit:
        """Raises HubError 404 for a revision that is no branch, tag or commit (full or the first seven characters and more)."""
        oid = self.branches.get(revision) or self.tags.get(revision)
        if oid is None and len(revision) >= 7:
            oid = next((known for known in self.commits if known.startswith(revision)), None)
        if oid is None:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.commits[oid]

    def file(self, revision: str, path: str) -> tuple[Commit, File]:
        commit = self.resolve(revision)
        if path not in commit.files:
            raise HubError(404, f"Entry not found: {path}", "EntryNotFound")
        return commit, commit.files[path]

    def commit(self, branch: str, header: Mapping[str, Any], changes: Mapping[str, File | None], folders: list[str]) -> Commit:
        """One commit on a branch: files to put (None: to delete) and folders to delete."""
        with self._lock:
            if branch not in self.branches:
                raise HubError(404, f"Invalid rev id: {branch}", "RevisionNotFound")
            head = self.branches[branch]
            expected = header.get("parentCommit")
            if expected and not head.startswith(expected):
                raise HubError(412, "A commit has happened since. Please refresh and try again.")
            files = {path: file for path, file in self.commits[head].files.items() if not path.startswith(tuple(folders))}
            for path, file in changes.items():
                if file is not None:
                    files[path] = file
                elif files.pop(path, None) is None:
                    raise HubError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
            return self._append(branch, head, header.get("summary", ""), header.get("description", ""), files)

    def upload_mode(self, branch: str, path: str, size: int, sample: bytes) -> str:
        """`lfs` or `regular`, by .gitattributes, by size, and by whether it is text."""
        rules = self.resolve(branch).files[".gitattributes"].content.decode()
        patterns = [line.split()[0] for line in rules.splitlines() if "filter=lfs" in line]
        if any(fnmatch(Path(path).name, pattern) for pattern in patterns) or size > REGULAR_LIMIT or b"\0" in sample:
            return "lfs"
        return "regular"

    def _append(self, branch: str, parent: str | None, title: str, message: str, files: Mapping[str, File]) -> Commit:
        tree = "".join(f"{path}\0{file.oid}\n" for path, file in sorted(files.items()))
        oid = hashlib.sha1(f"{self.kind}{self.repo_id}{parent}{title}{next(self._clock)}{tree}".encode()).hexdigest()
        commit = Commit(oid, parent, title, message, f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S}.000Z", dict(files))
        self.commits[oid] = commit
        self.branches[branch] = oid
        return commit


class ObjectStore:
    """The large objects on disk, named by their SHA-256; a half one is never under its name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.capacity: int | None = None
        """Bytes the disk holds; None: as many as there are."""
        (folder / "incoming").mkdir(parents=True)

    def path(self, sha256: str) -> Path:
        return self.folder / sha256

    def __contains__(self, sha256: str) -> bool:
        return self.path(sha256).is_file()

    @property
    def used(self) -> int:
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())

    def put(self, name: str, stream: BinaryIO, length: int) -> str:
        """Keep `length` bytes as an incoming object and return their SHA-256; 507 where the disk is full."""
        incoming = self.folder / "incoming" / name
        digest = hashlib.sha256()
        try:
            if self.capacity is not None and self.used + length > self.capacity:
                while length and (block := stream.read(min(length, 1 << 16))):
                    length -= len(block)
                raise HubError(507, "No space left on device")
            with incoming.open("wb") as file:
                while length:
                    block = stream.read(min(length, 1 << 16))
                    if not block:
                        raise ConnectionResetError("the upload ended early")
                    digest.update(block)
                    file.write(block)
                    length -= len(block)
        except BaseException:
            incoming.unlink(missing_ok=True)
            raise
        return digest.hexdigest()

    def accept(self, sha256: str, names: list[str]) -> None:
        """Make incoming parts the object of that name, if they are what it should be."""
        parts = [self.folder / "incoming" / name for name in names]
        whole = self.folder / "incoming" / f"{sha256}.whole"
        digest = hashlib.sha256()
        with whole.open("wb") as file:
            for part in parts:
                content = part.read_bytes()
                digest.update(content)
                file.write(content)
        for part in parts:
            part.unlink()
        if digest.hexdigest() != sha256:
            whole.unlink()
            raise HubError(400, f"the uploaded content is {digest.hexdigest()}, not {sha256}")
        whole.replace(self.path(sha256))
