"""A small sequence task for the loop's tests; as a script it is the training that a test kills, or that two processes share.

Run as `python loop_task.py FOLDER SETTINGS_JSON`: trains in FOLDER/run and writes FOLDER/weights.safetensors and FOLDER/report.json.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset

from cemg_hf.training.loop import LoopConfig, TrainingReport, train

VOCABULARY = 11


class NextToken(nn.Module):
    """A recurrent next-token model with everything the loop treats specially: embedding, norm, bias, dropout, tied weights."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 12)
        self.recurrent = nn.GRU(12, 12, batch_first=True)
        self.norm = nn.LayerNorm(12)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(12, VOCABULARY)
        self.head.weight = self.embedding.weight

    def forward(self, input_ids: Tensor, labels: Tensor, num_items_in_batch: Tensor | int) -> SimpleNamespace:
        logits = self.head(self.dropout(self.norm(self.recurrent(self.embedding(input_ids))[0])))
        loss = functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=-100, reduction="sum")
        return SimpleNamespace(loss=loss / num_items_in_batch, logits=logits)


class Walks(Dataset[Tensor]):
    """Walks on a ring with steps of +1 or +3, of 3 to 9 tokens."""

    def __init__(self, count: int, seconds_per_sample: float = 0.0) -> None:
        generator = np.random.default_rng(7)
        self.lengths = generator.integers(3, 10, count)
        self.walks = [torch.from_numpy(np.cumsum(generator.choice([1, 3], length)) % (VOCABULARY - 1) + 1) for length in self.lengths]
        self.seconds_per_sample = seconds_per_sample
        self.loaded: list[int] = []

    def __len__(self) -> int:
        return len(self.walks)

    def __getitem__(self, index: int) -> Tensor:
        self.loaded.append(index)
        if self.seconds_per_sample:
            time.sleep(self.seconds_per_sample)
        return self.walks[index]


def collate(walks: list[Tensor]) -> dict[str, Tensor]:
    padded = nn.utils.rnn.pad_sequence(walks, batch_first=True)
    labels = padded[:, 1:].masked_fill(padded[:, 1:] == 0, -100)
    return {"input_ids": padded[:, :-1], "labels": labels}


class Accuracy:
    """Negative loss on a fixed sample under the metric's name; records what it was called with."""

    def __init__(self) -> None:
        self.batch = collate(Walks(40).walks)
        self.calls: list[dict[str, Tensor]] = []

    def __call__(self, model: nn.Module) -> dict[str, float]:
        assert not model.training
        assert not torch.is_grad_enabled()
        self.calls.append({name: weights.clone() for name, weights in model.state_dict().items()})
        return {"ndcg@10": -float(model(**self.batch, num_items_in_batch=100).loss), "extra": 1.0}


def new_model(dropout: float = 0.0) -> NextToken:
    torch.manual_seed(3)
    return NextToken(dropout)


def run(folder: Path, dropout: float = 0.0, samples: int = 61, **settings: Any) -> tuple[NextToken, TrainingReport]:
    """Train from fixed initial weights; further keywords are settings of the loop or, with their own defaults, arguments of `train`."""
    dataset = settings.pop("dataset", None) or Walks(samples)
    model = settings.pop("model", None) or new_model(dropout)
    arguments = {"evaluate": Accuracy(), "seed": 5, "lengths": dataset.lengths}
    others = ("evaluate", "seed", "lengths", "accelerator", "identity", "on_step")
    arguments |= {name: settings.pop(name) for name in others if name in settings}
    config = LoopConfig(**{"epochs": 3, "batch_size": 8, "learning_rate": 0.01, "log_every_steps": 5} | settings)
    return model, train(model, config=config, dataset=dataset, collate_fn=collate, folder=folder, **arguments)


if __name__ == "__main__":
    target, given = Path(sys.argv[1]), json.loads(sys.argv[2])
    pause = given.pop("seconds_per_sample", 0.0)
    trained, report = run(target / "run", dataset=Walks(given.pop("samples", 61), pause), **given)
    if PartialState().is_main_process:
        save_file({name: weights.contiguous() for name, weights in trained.named_parameters()}, target / "weights.safetensors")
        (target / "report.json").write_text(json.dumps(asdict(report) | {"processes": PartialState().num_processes}))
    PartialState().destroy_process_group()
