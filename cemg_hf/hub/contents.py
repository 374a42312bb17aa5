"""What a repository will hold, and what must not be in it: secrets, and paths of the machine it was made on."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePath
from typing import Any

from ..artefacts import MANIFEST_NAME

# Prefixes that the issuers document so that leaked ones can be found; lengths are lower bounds.
_SECRETS = {
    "a Hugging Face token": r"\b(?:hf|api_org)_[A-Za-z0-9]{30,}",
    "an AWS access key": r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    "an AWS secret key": r"(?i:aws_?secret_?(?:access_?)?key)[\"'\s]*[=:][\"'\s]*[A-Za-z0-9/+=]{40}",
    "a private key": r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY(?: BLOCK)?-----",
    "a password in a URL": r"\b[a-z][a-z0-9+.-]{0,20}://[^\s/:@\"'<>{}$]*:[^\s/:@\"'<>{}$]+@",
    "a GitHub token": r"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{22,})",
    "a GitLab token": r"\bglpat-[A-Za-z0-9_-]{20,}",
    "a Slack token": r"\bxox[abeprs]-[A-Za-z0-9-]{10,}",
    "an API key": r"\bsk-[A-Za-z0-9_-]{32,}|\bAIza[0-9A-Za-z_-]{35}",
}
_SYSTEM = {"bin", "boot", "dev", "etc", "lib", "lib32", "lib64", "libx32", "proc", "run", "sbin", "sys", "usr"}
"""Folders that look the same on every machine: a path into them, such as /usr/bin/env, tells nothing."""
_HOMES = {"home", "root", "Users"}
_WINDOWS = r"\b[A-Z]:\\{1,2}[^\\\s\"'<>|]+\\{1,2}[^\s\"'<>|]+"
EVAL_RESULTS = ".eval_results"
_SNIFFED = 8192  # bytes of a file that tell text from binary


@dataclass(frozen=True)
class Contents:
    """The files of a repository. files: path in the repository -> file on this machine."""

    files: Mapping[str, Path]

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes by path in the repository, sorted by path."""
        return {path: self.files[path].stat().st_size for path in sorted(self.files)}


def folder_contents(folder: Path) -> Contents:
    """All files of a folder but its manifest and what is hidden. The manifest says when it was made, so every commit would be another;
    of hidden names the Hub reads `.eval_results` alone.
    """
    files = {path.relative_to(folder): path for path in sorted(folder.rglob("*")) if path.is_file()}
    left_out = {name for name in files if any(part.startswith(".") and part != EVAL_RESULTS for part in name.parts)} | {Path(MANIFEST_NAME)}
    return Contents({name.as_posix(): path for name, path in files.items() if name not in left_out})


def problems(contents: Contents, secrets: Sequence[str] = ()) -> list[str]:
    """What must not leave this machine, one sentence each: file, line, what it is. Never the secret itself.

    Args:
        contents: the files; texts (UTF-8) among them are read.
        secrets: values that must not be found, such as the token in use.
    """
    found = []
    for path, file in contents.files.items():
        if _is_text(file):
            with file.open(encoding="utf-8", errors="replace") as lines:
                found += [f"{path}, line {number}: {what}" for number, line in enumerate(lines, 1) for what in _in_line(line, secrets)]
    return found


def without_local_paths(text: str) -> str:
    """`text` with every absolute path of this machine cut to its last part: `--output /home/me/runs/shop` → `--output shop`."""
    return _windows().sub(_last_part, _posix().sub(_last_part, text))


def values_without_local_paths(value: Any) -> Any:
    """The same for all strings in nested mappings and lists; a string that is an absolute path as a whole is cut wherever it leads."""
    if isinstance(value, Mapping):
        return {key: values_without_local_paths(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [values_without_local_paths(entry) for entry in value]
    if isinstance(value, str):
        return PurePath(value).name if PurePath(value).is_absolute() else without_local_paths(value)
    return value


def _in_line(line: str, secrets: Sequence[str]) -> Iterator[str]:
    for what, pattern in _secret_patterns().items():
        if pattern.search(line):
            yield what
    if any(secret in line for secret in secrets):
        yield "the token you are logged in with"
    for pattern in (_posix(), _windows()):
        for match in pattern.finditer(line):
            yield f"a path of this machine ({match[0]})"


def _is_text(file: Path) -> bool:
    with file.open("rb") as stream:
        start = stream.read(_SNIFFED)
    if b"\0" in start:
        return False
    try:
        start.decode()
    except UnicodeDecodeError as error:
        return error.start > len(start) - 4 and len(start) == _SNIFFED  # a character cut in two by the end
    return True


def _last_part(match: re.Match[str]) -> str:
    return re.split(r"[/\\]+", match[0].rstrip("/\\"))[-1]


@cache
def _secret_patterns() -> dict[str, re.Pattern[str]]:
    return {what: re.compile(pattern) for what, pattern in _SECRETS.items()}


@cache
def _posix() -> re.Pattern[str]:
    """Absolute paths below a folder that is at the root of this machine, or below a home anywhere; not parts of URLs, tags or names."""
    present = {entry.name for entry in os.scandir("/") if entry.is_dir()} if os.name == "posix" else set()
    roots = "|".join(re.escape(name) for name in sorted((present | _HOMES) - _SYSTEM))
    return re.compile(rf"(?:(?<![\w./~$<>{{}}()*+?^\\\]-])|(?<=file://))/(?:{roots})/[^\s\"'`<>|,;:()\[\]{{}}]+")


@cache
def _windows() -> re.Pattern[str]:
    return re.compile(_WINDOWS)
