"""Folders that stages hand to each other: written atomically, described by a manifest, skipped when still valid.

Every stage reads a folder and writes a folder. `write_folder` gives the stage a scratch folder beside the final one and
moves it into place only when the stage has finished, so a killed stage leaves its previous output (or nothing), never half
of a new one. `one_writer` keeps two processes from working on the same folder. The manifest holds everything the output
depends on; `is_current` compares it with what a new call would write.
"""

from __future__ import annotations

import errno
import hashlib
import inspect
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import wraps
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path, PurePath
from typing import Any, ParamSpec, TypeVar
from urllib.parse import urlparse
from urllib.request import url2pathname

from .errors import CEMGError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

MANIFEST_NAME = "manifest.json"
MANIFEST_KEYS = ("stage", "settings", "inputs", "seed")
_PARTS_OF_RUNS = ("dataset", "features", "tokenizer", "model", "evaluation", "evaluation-codes-only")
REPORTED_PACKAGES = ("cemg-hf", "torch", "torchvision", "transformers", "accelerate", "datasets", "torch-geometric", "peft", "numpy")


@dataclass(frozen=True)
class Manifest:
    """What one stage's output was made from."""

    stage: str = field(metadata={"help": "Name of the stage that wrote the folder."})
    settings: Mapping[str, Any] = field(metadata={"help": "The stage's own settings, as plain JSON values."})
    inputs: Mapping[str, str] = field(metadata={"help": "Fingerprint of each input folder or file."})
    seed: int = field(metadata={"help": "Seed of every random choice of the stage."})

    def as_dict(self) -> dict[str, Any]:
        return json.loads(json.dumps(asdict(self), default=str))


def fingerprint(*parts: bytes | str | Path) -> str:
    """Hex SHA-256 over length-prefixed parts, so that ("ab", "c") and ("a", "bc") differ. A path stands for the bytes of its file."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path):
            digest.update(part.stat().st_size.to_bytes(8, "little"))
            with part.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        else:
            data = part.encode() if isinstance(part, str) else part
            digest.update(len(data).to_bytes(8, "little"))
            digest.update(data)
    return digest.hexdigest()


def fingerprint_path(path: str | Path) -> str:
    """Fingerprint of a file's bytes or of a folder's file names and bytes.

    A folder that carries a manifest is known by the manifest's content (what it was made from), not by when it was made.
    """
    path = Path(path)
    if path.is_file():
        return fingerprint(path)
    manifest = read_manifest(path)
    if manifest is not None:
        return fingerprint(json.dumps({key: manifest[key] for key in MANIFEST_KEYS}, sort_keys=True))
    if not path.is_dir():
        raise CEMGError(f"{path}: no such file or folder")
    files = sorted(p for p in path.rglob("*") if p.is_file())
    return fingerprint(*(part for file in files for part in (str(file.relative_to(path)), file)))


def read_manifest(folder: str | Path) -> dict[str, Any] | None:
    """The manifest of a stage's output; None where there is none, or where a file of that name is something else."""
    path = Path(folder) / MANIFEST_NAME
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:  # `manifest.json` is a common name: a user's own may be anything
        return None
    return content if isinstance(content, dict) and content.keys() >= set(MANIFEST_KEYS) else None


def is_current(folder: str | Path, manifest: Manifest) -> bool:
    """Whether `folder` was written by a finished stage from exactly these settings, inputs and seed."""
    written = read_manifest(folder)
    return written is not None and {key: written[key] for key in MANIFEST_KEYS} == manifest.as_dict()


@contextmanager
def write_folder(folder: str | Path, manifest: Manifest, started: float | None = None) -> Iterator[Path]:
    """Yield a scratch folder that replaces `folder`, manifest included, when the block ends without an error.

    The manifest's wall time counts from `started`, a reading of `time.perf_counter()` (default: from here).

    Raises:
        CEMGError: the disk is full. What was written is gone then, and `folder` as it was.
    """
    final = Path(folder).resolve()  # "." has no name to put a scratch folder beside; a link stays a link
    scratch = final.with_name(f".{final.name}.partial")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    started = time.perf_counter() if started is None else started
    try:
        with room_in(final):
            yield scratch
            made = {"versions": versions(), "machine": machine(), "seconds": round(time.perf_counter() - started, 2)}
            write_json(scratch / MANIFEST_NAME, manifest.as_dict() | made)
    except DiskFull:
        shutil.rmtree(scratch, ignore_errors=True)  # it is what fills the disk
        raise
    replace_folder(scratch, final)


class InUse(CEMGError):
    """Another process writes this folder."""


@contextmanager
def claim(folder: str | Path) -> Iterator[None]:
    """Keep other processes from writing `folder` within the block; a claim ends with its process too, however that ends.

    Claims of the same process nest. Of the processes that train together (`RANK`, set by torchrun and accelerate) the first one claims.
    Nothing is claimed where nothing can be written, and where files cannot be locked (some network file systems, Windows).

    Raises:
        InUse: another process writes it.
    """
    final = Path(folder).resolve()
    path = final.with_name(f".{final.name}.lock")
    if path in _claimed or fcntl is None or os.environ.get("RANK", "0") != "0":
        yield
        return
    try:
        descriptor = _lock(path)
    except BlockingIOError:
        raise InUse(f"{folder}: another process is writing this folder; wait until it has finished, or write somewhere else") from None
    except OSError as error:
        if error.errno not in _UNCLAIMABLE:
            raise
        yield
        return
    _claimed.add(path)
    try:
        yield
    finally:
        _claimed.discard(path)
        path.unlink(missing_ok=True)
        os.close(descriptor)


_claimed: set[Path] = set()
_UNCLAIMABLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK, errno.ENOSPC, errno.EDQUOT}
"""Errors of a place that cannot be claimed; a full disk is the stage's to report, if it has anything to write."""


def _lock(path: Path) -> int:
    """A descriptor that holds the lock file; BlockingIOError where another process holds it.

    The file goes when its holder is done, so a lock counts only if it is on the file that others will open too.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and path.stat().st_ino == os.fstat(descriptor).st_ino:
                return descriptor
        except FileNotFoundError:  # gone between the two questions
            pass
        except OSError:
            os.close(descriptor)
            raise
        os.close(descriptor)


_P = ParamSpec("_P")
_T = TypeVar("_T")


def one_writer(stage: Callable[_P, _T]) -> Callable[_P, _T]:
    """Decorator of a stage: it claims its argument `output` from before it looks what is there until it has written."""
    signature = inspect.signature(stage)

    @wraps(stage)
    def alone(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        with claim(signature.bind(*args, **kwargs).arguments["output"]):
            return stage(*args, **kwargs)

    return alone


class DiskFull(CEMGError):
    """No room where something was to be written."""


@contextmanager
def room_in(folder: Path) -> Iterator[None]:
    """Raise DiskFull, which names `folder`, for a disk that fills up in the block, whichever library was writing."""
    try:
        yield
    except Exception as error:
        if isinstance(error, DiskFull) or not _means_full(error):
            raise
        raise DiskFull(
            f"{folder}: the disk is full; make room, or name a folder on another disk (TMPDIR: that of temporary files), and run the same "
            "command again"
        ) from error


def _means_full(error: BaseException | None) -> bool:
    """Whether an error, or what it came from, is that of a full disk, an exhausted quota or a file that may not grow any further."""
    while error is not None:
        number = error.errno if isinstance(error, OSError) else None
        if number is None and (said := re.search(r"\(os error (\d+)\)", str(error))):  # libraries in Rust: safetensors, polars
            number = int(said[1])
        if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return True
        error = error.__cause__ or error.__context__
    return False


def replace_folder(source: Path, final: Path) -> None:
    """Move `source` to `final`; what stood there goes only after the new folder is in place."""
    old = final.with_name(f".{final.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
    source.rename(final)
    shutil.rmtree(old, ignore_errors=True)


def write_json(path: str | Path, content: Any) -> None:
    """Write JSON atomically."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, default=str) + "\n")


def write_text(path: str | Path, content: str) -> None:
    """Write a text file atomically (a reader sees the old file or the new one)."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}.partial")  # processes that share a study write the same answer
    scratch.write_text(content, encoding="utf-8")
    scratch.replace(path)


def versions() -> dict[str, str]:
    """Installed versions of the packages results depend on."""
    found = {"python": platform.python_version()}
    for name in REPORTED_PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def machine() -> dict[str, Any]:
    """Enough about the machine to judge a wall time."""
    import torch

    accelerator = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {"platform": platform.platform(), "processor": platform.machine(), "cores": os.cpu_count(), "accelerator": accelerator}


def commit() -> str:
    """Git commit of the package's checkout ("-dirty" when files differ from it), or "unknown" outside one.

    An installed copy names the commit of the checkout it was installed from. A repository that merely surrounds the package (a
    virtual environment inside somebody's project) is not asked. A copy without its repository, as it is sent to another machine, is
    told by the environment variable CEMG_COMMIT.
    """
    here = Path(__file__).resolve().parent
    if _git("ls-files", "--error-unmatch", "artefacts.py", folder=here) is None:
        checkout = _installed_from()
        if checkout is None or _git("ls-files", "--error-unmatch", f"{here.name}/artefacts.py", folder=checkout) is None:
            return os.environ.get("CEMG_COMMIT", "unknown")
        here = checkout
    return _git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*", folder=here) or "unknown"


def _git(*arguments: str, folder: Path) -> str | None:
    """Output of a git command in `folder`; None when it fails or there is no git."""
    program = shutil.which("git")
    if program is None or not folder.is_dir():
        return None
    run = subprocess.run([program, *arguments], cwd=folder, capture_output=True, text=True)
    return run.stdout.strip() if run.returncode == 0 else None


def _installed_from() -> Path | None:
    """Folder that `pip install .` was given, from the record pip leaves (PEP 610)."""
    try:
        record = distribution("cemg-hf").read_text("direct_url.json")
    except PackageNotFoundError:
        return None
    address = urlparse(json.loads(record)["url"]) if record else None
    return Path(url2pathname(address.path)) if address is not None and address.scheme == "file" else None


def portable(command: str) -> str:
    """A recorded command as others may read it: an absolute path is cut to its name, that of a run's `tokenizer/`, … to two names."""
    try:
        words = shlex.split(command)
    except ValueError:  # not a command line of a shell
        words = command.split()
    return shlex.join("=".join(_name_of(part) for part in word.split("=")) for word in words)


def _name_of(word: str) -> str:
    path = PurePath(word)
    return str(PurePath(*path.parts[-2 if path.name in _PARTS_OF_RUNS and len(path.parts) > 2 else -1 :])) if path.is_absolute() else word


def result_envelope(
    metrics: Mapping[str, Any], *, command: str, seeds: list[int], seconds: float, std: Mapping[str, Any] | None = None, **extra: Any
) -> dict[str, Any]:
    """The one envelope of every `metrics.json` and of every file in `benchmarks/results/`."""
    return {
        "metrics": metrics,
        **({"std": std} if std is not None else {}),
        "command": command,
        "commit": commit(),
        "seeds": seeds,
        "versions": versions(),
        "machine": machine(),
        "seconds": round(seconds, 2),
        **extra,
    }
