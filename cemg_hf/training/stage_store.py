"""Stages that several runs have in common, made once: whatever one run wrote stands in the folders of the others too, as hard links."""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ..artefacts import InUse, claim, fingerprint, fingerprint_path, read_manifest, replace_folder
from .deadline import OutOfTime, time_is_up

if TYPE_CHECKING:
    from ..recipes import Recipe

logger = logging.getLogger(__name__)

SHARED_STAGES = ("prepare", "encode", "tokenize")
"""Stages whose output does not depend on the system that is trained on it."""

POLL_S = 0.5
"""Seconds between two looks at whether another process has made a stage."""


@dataclass(frozen=True)
class StageStore:
    """The folders of the shared stages of one recipe, known by what the recipe says of them and of everything before them."""

    root: Path = field(metadata={"help": "Folder of the store; runs beside it share it."})
    keys: Mapping[str, str] = field(metadata={"help": "Stage → name of its folder in the store."})
    trusted: bool = field(default=False, metadata={"help": "Take what is there without asking whether its sources have changed."})
    patient: bool = field(default=True, metadata={"help": "Wait for a stage that another process makes; else that is an error."})

    @classmethod
    def of(cls, recipe: Recipe, root: Path, *, trusted: bool = False, patient: bool = True) -> StageStore:
        """The part of a store that belongs to a recipe."""
        settings, keys = [], {}
        for stage in SHARED_STAGES:
            settings.append(asdict(getattr(recipe, stage)))
            if stage == "tokenize" and recipe.streams is not None:
                coded = recipe.streams.image_codes
                settings.append({"streams": recipe.streams.modalities} | ({} if coded is None else {"image_codes": coded}))
            keys[stage] = f"{stage}-{fingerprint(json.dumps([recipe.seed, *settings], sort_keys=True, default=str))[:16]}"
        return cls(root, keys, trusted, patient)

    @contextmanager
    def turn(self, stage: str) -> Iterator[None]:
        """Within the block no other process makes this stage for the store; one that does is waited for.

        Raises:
            InUse: another process makes it, and the store is not patient.
            OutOfTime: the time of this call was up first.
        """
        with ExitStack() as held:
            waits = False
            while stage in self.keys:
                try:
                    held.enter_context(claim(self.root / self.keys[stage]))
                    break
                except InUse:
                    if not self.patient:
                        raise
                    if time_is_up():
                        raise OutOfTime(f"{self.root}: another process makes {self.keys[stage]}; run the same command again") from None
                    if not waits:
                        logger.info("%s: waiting for another process that makes %s", self.root, self.keys[stage])
                    waits = True
                    time.sleep(POLL_S)
            yield

    def take(self, stage: str, folder: Path) -> bool:
        """Put the stored output of a stage in place of the run's own, if it is another.

        Returns: whether the stage is done with that. False: it has to look for itself, and skips what is up to date.
        """
        if stage not in self.keys or read_manifest(kept := self.root / self.keys[stage]) is None:
            return False
        if not _same(kept, folder):
            link_folder(kept, folder)
        return self.trusted

    def keep(self, stage: str, folder: Path) -> None:
        """Store what the stage has left in the run's folder."""
        if stage in self.keys and not _same(folder, kept := self.root / self.keys[stage]):
            link_folder(folder, kept)


def link_folder(source: Path, final: Path) -> None:
    """Make `final` a copy of a stage's folder that takes no space: stages replace whole folders and never write into old files."""
    scratch = final.with_name(f".{final.name}.partial")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(source, scratch, copy_function=_link)
    replace_folder(scratch, final)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copy2(source, target)


def _same(one: Path, other: Path) -> bool:
    """Whether both folders were written, and from the same."""
    return read_manifest(other) is not None and fingerprint_path(one) == fingerprint_path(other)
