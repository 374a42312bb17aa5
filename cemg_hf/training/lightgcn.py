"""LightGCN as a recommender: the collaborative encoder's users and items, ranked by their dot product."""

from __future__ import annotations

import logging
import shutil
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..artefacts import Manifest, fingerprint, fingerprint_path, is_current, one_writer, write_folder, write_json
from ..data import PreparedDataset
from ..data.splits import EvaluationCases
from ..errors import CEMGError
from .collaborative import CollaborativeConfig, train_collaborative
from .epoch_checkpoint import EpochCheckpoint
from .scoring import rank_by_scores

logger = logging.getLogger(__name__)

EMBEDDINGS_FILE = "embeddings.safetensors"


@one_writer
def train_lightgcn(config: CollaborativeConfig, dataset: str | Path, output: str | Path, seed: int = 42) -> Path:
    """Train LightGCN and write the embeddings of users and items; skipped when current, resumed when stopped.

    Raises:
        CEMGError, OutOfTime: as `train_collaborative`.
    """
    output = Path(output)
    manifest = Manifest("train", {"lightgcn": asdict(config)}, {"dataset": fingerprint_path(dataset)}, seed)
    if is_current(output, manifest):
        logger.info("train: %s is up to date", output)
        return output
    started = time.perf_counter()
    data = PreparedDataset.load(dataset)
    work = output.with_name(f".{output.name}.training")
    result = train_collaborative(data, config, seed, EpochCheckpoint(work / "lightgcn.safetensors", manifest))
    with write_folder(output, manifest, started) as scratch:
        users = torch.from_numpy(result.user_embeddings).contiguous()
        trained = torch.from_numpy(data.train_sequences().lengths > 0)
        users[~trained] = users[trained].mean(dim=0)  # a split by time has users whom the graph does not know: their rows are still random
        tensors = {
            "users": users,
            "items": torch.from_numpy(result.item_embeddings),
            "known": torch.from_numpy(result.mask),
        }
        save_file(tensors, scratch / EMBEDDINGS_FILE, {"made_of": _made_of(data)})
        write_json(scratch / "report.json", result.report)
    shutil.rmtree(work, ignore_errors=True)
    return output


class LightGCNRanker:
    """Rankings by e_u · e_i. A user is the embedding of her training interactions, also at test time, and the mean user where she has none.

    Items without training interactions do not come out.
    """

    def __init__(self, users: torch.Tensor, items: torch.Tensor, known: torch.Tensor) -> None:
        """users (U, d), items (N, d), known (N,) bool: items that were in the graph."""
        self.users, self.items, self.known = users, items, known

    @classmethod
    def load(cls, folder: str | Path, data: PreparedDataset) -> LightGCNRanker:
        """The embeddings in a folder that `train_lightgcn` wrote, on the GPU where there is one.

        Raises:
            CEMGError: no such folder, a damaged file, or another data set.
        """
        path = Path(folder) / EMBEDDINGS_FILE
        if not path.is_file():
            raise CEMGError(f"{folder}: holds no LightGCN ({EMBEDDINGS_FILE} is missing); train it with `cemg run … --system lightgcn`")
        try:
            with safe_open(path, "pt") as file:
                about = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in ("users", "items", "known")}
        except (SafetensorError, OSError) as error:
            raise CEMGError(f"{path}: cannot be read ({' '.join(str(error).split())}); train it again") from error
        if about.get("made_of") != _made_of(data):
            raise CEMGError(f"{folder}: was trained on another data set than {data.folder}; evaluate on that one")
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return cls(*(tensors[name].to(device) for name in ("users", "items", "known")))

    def __call__(
        self, cases: EvaluationCases, k: int, *, exclude_history: bool, progress: str | None = None
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Item indices (cases, k), best first, −1 where there is no further item, and their scores."""

        def scores_of(rows: npt.NDArray[np.int64]) -> torch.Tensor:
            scores = self.users[torch.from_numpy(cases.users[rows]).to(self.users.device)] @ self.items.T
            return scores.masked_fill(~self.known, -torch.inf)

        return rank_by_scores(scores_of, cases.histories, len(self.items), k, exclude_history=exclude_history, progress=progress)


def _made_of(data: PreparedDataset) -> str:
    """Fingerprint of the users and items behind the rows."""
    return fingerprint(*data.user_ids, "", *data.item_ids)
