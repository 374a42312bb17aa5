"""Folders that stages hand to each other: written atomically, described by a manifest, skipped when still valid.

Every stage reads a folder and writes a folder. `write_folder` gives the stage a scratch folder beside the final one and
moves it into place only when the stage has finished, so a killed stage leaves its previous output (or nothing), never half
of a new one. The manifest holds everything the output depends on; `is_current` compares it with what a new call would write.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .errors import CEMGError

MANIFEST_NAME = "manifest.json"
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


def fingerprint(*parts: bytes | str) -> str:
    """Hex SHA-256 over length-prefixed parts, so that ("ab", "c") and ("a", "bc") differ."""
    digest = hashlib.sha256()
    for part in parts:
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
        return fingerprint(path.read_bytes())
    if (path / MANIFEST_NAME).is_file():
        manifest = json.loads((path / MANIFEST_NAME).read_text())
        return fingerprint(json.dumps({key: manifest[key] for key in ("stage", "settings", "inputs", "seed")}, sort_keys=True))
    if not path.is_dir():
        raise CEMGError(f"{path}: no such file or folder")
    files = sorted(p for p in path.rglob("*") if p.is_file())
    return fingerprint(*(part for file in files for part in (str(file.relative_to(path)), file.read_bytes())))


def is_current(folder: str | Path, manifest: Manifest) -> bool:
    """Whether `folder` was written by a finished stage from exactly these settings, inputs and seed."""
    path = Path(folder) / MANIFEST_NAME
    if not path.is_file():
        return False
    written = json.loads(path.read_text())
    return {key: written.get(key) for key in manifest.as_dict()} == manifest.as_dict()


@contextmanager
def write_folder(folder: str | Path, manifest: Manifest) -> Iterator[Path]:
    """Yield a scratch folder that replaces `folder`, manifest included, when the block ends without an error."""
    final = Path(folder)
    scratch = final.with_name(f".{final.name}.partial")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    started = time.perf_counter()
    yield scratch
    write_json(scratch / MANIFEST_NAME, {**manifest.as_dict(), "versions": versions(), "machine": machine(), "seconds": round(time.perf_counter() - started, 2)})
    replace_folder(scratch, final)


def replace_folder(source: Path, final: Path) -> None:
    """Move `source` to `final`; what stood there goes only after the new folder is in place."""
    old = final.with_name(f".{final.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
    source.rename(final)
    shutil.rmtree(old, ignore_errors=True)


def write_json(path: str | Path, content: Any) -> None:
    """Write JSON atomically (a reader sees the old file or the new one)."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.partial")
    scratch.write_text(json.dumps(content, indent=2, ensure_ascii=False, default=str) + "\n")
    os.replace(scratch, path)


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
    """Git commit of the package's checkout ("-dirty" when files differ from it), or "unknown" outside one."""
    here = Path(__file__).resolve().parent
    run = subprocess.run(["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"], cwd=here, capture_output=True, text=True)
    return run.stdout.strip() if run.returncode == 0 else "unknown"


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
