"""A run to the Hub: its model with tokenizer, code and card, and its data set, each in one commit."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import get_token
from huggingface_hub.utils import HFValidationError, validate_repo_id

from ..artefacts import room_in
from ..errors import CEMGError
from .contents import Contents, folder_contents, problems
from .dataset_folder import dataset_contents, licence_problems
from .export import export_model
from .push import Pushed, push


@dataclass(frozen=True)
class PublishConfig:
    """Where a run is published, and what of it."""

    repo: str = field(metadata={"help": "Repository of the model, such as org/cemg-beauty."})
    dataset_repo: str | None = field(default=None, metadata={"help": "Repository of the data set (default: it is not published)."})
    private: bool = field(default=False, metadata={"help": "Make the repositories private."})
    revision: str | None = field(default=None, metadata={"help": "Branch of the model's repository (default: main); made if missing."})
    item_texts: bool = field(default=True, metadata={"help": "Whether the data set carries the items' texts and images."})
    dtype: str = field(default="bfloat16", metadata={"help": "Precision of the weights: bfloat16, float16 or float32."})
    comparison: str | None = field(default=None, metadata={"help": "compare.json of `cemg compare`: other systems, shown in the card."})

    def __post_init__(self) -> None:
        for option, name in (("--repo", self.repo), ("--dataset-repo", self.dataset_repo)):
            try:
                if name is not None:
                    validate_repo_id(name)
            except HFValidationError as error:
                raise ValueError(f"{option} {name}: {' '.join(str(error).split())}") from error
        if self.repo == self.dataset_repo:
            raise ValueError(
                f"--dataset-repo {self.dataset_repo}: is the name of the model's repository; choose another, such as {self.repo}-data"
            )


@dataclass(frozen=True)
class Package:
    """One repository as it would be pushed, and what forbids it. refused: one sentence for each reason."""

    repo: str
    kind: str
    contents: Contents
    refused: list[str]

    def __str__(self) -> str:
        sizes = self.contents.sizes
        lines = [f"{self.kind} {self.repo}: {len(sizes)} files, {sum(sizes.values()) / 1e6:.1f} MB"]
        lines += [f"{size:>14,}  {path}" for path, size in sizes.items()]
        return "\n".join(lines + [f"refused: {reason}" for reason in self.refused])


class Preview(NamedTuple):
    """What would be pushed, to be read, and one sentence for each reason why it would not be."""

    text: str
    refused: list[str]


def publish(run: str | Path, config: PublishConfig) -> list[Pushed]:
    """Push a finished run: the data set first (if it has a repository), then the model, whose card links it.

    Each repository is in its old state or in its new one, at any time; the same call again continues what was interrupted, and makes no
    commit where nothing changed.

    Raises:
        CEMGError: a run that is not complete, anything that must not be published (see `dry_run`), a push that failed, or a full disk.
    """
    with _scratch() as scratch:
        packages = _packages(Path(run), config, scratch)
        refused = _refused(packages)
        if refused:
            more = f" (and {len(refused) - 1} more, see --dry-run)" if len(refused) > 1 else ""
            raise CEMGError(f"nothing was published. {refused[0]}{more}")
        return [
            push(
                package.contents,
                package.repo,
                kind=package.kind,
                private=config.private,
                branch=config.revision if package.kind == "model" else None,
                message=f"Publish {package.kind} of {Path(run).resolve().name}",
            )
            for package in packages
        ]


def dry_run(run: str | Path, config: PublishConfig) -> Preview:
    """What `publish` would push, without a network: every file with its size in bytes, and all that it would refuse.

    Raises:
        CEMGError: a run that is not complete, or a full disk.
    """
    with _scratch() as scratch:
        packages = _packages(Path(run), config, scratch)
        return Preview("\n\n".join(map(str, packages)), _refused(packages))


def _refused(packages: list[Package]) -> list[str]:
    return [f"{package.repo}: {reason}" for package in packages for reason in package.refused]


@contextmanager
def _scratch() -> Iterator[Path]:
    """A folder for what is made to be pushed, gone afterwards."""
    try:
        made = tempfile.TemporaryDirectory(prefix="cemg-publish-")
    except OSError as error:  # also what `tempfile` raises where it finds no folder that it can write to
        raise CEMGError(f"no temporary folder can be made ({error}); make room, or set TMPDIR to a folder on another disk") from error
    with made as folder, room_in(Path(folder)):
        yield Path(folder)


def _packages(run: Path, config: PublishConfig, scratch: Path) -> list[Package]:
    token = get_token()
    secrets = [token] if token else []
    packages = []
    if config.dataset_repo is not None:
        changed = scratch / "dataset"
        changed.mkdir()
        contents = dataset_contents(run / "dataset", changed, repo=config.dataset_repo, item_texts=config.item_texts)
        packages.append(Package(config.dataset_repo, "dataset", contents, licence_problems(contents) + problems(contents, secrets)))
    folder = export_model(
        run, scratch / "model", name=config.repo, dtype=config.dtype, comparison=config.comparison, dataset_repo=config.dataset_repo
    )
    contents = folder_contents(folder)
    packages.append(Package(config.repo, "model", contents, problems(contents, secrets)))
    return packages
