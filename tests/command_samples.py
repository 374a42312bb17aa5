"""What the tests of commands work with: a way to call them, a small untrained model, a small shop with its recipe."""

from __future__ import annotations

import sys
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import pytest
import torch
import yaml
from PIL import Image

from cemg_hf import (
    CEMGConfig,
    CEMGForConditionalGeneration,
    CEMGTokenizer,
    GRU4RecConfig,
    GRU4RecForNextItem,
    SASRecConfig,
    SASRecForNextItem,
)
from cemg_hf.cli import main
from cemg_hf.models.next_item import NextItemModel

NUM_ITEMS, NUM_USERS, LENGTH = 24, 40, 6
WORDS = ("red", "blue", "green", "shoe", "shirt", "lamp", "wool", "leather")
UNKNOWN, TRUNCATED, BARE = "no-such-item", "item-05", "item-07"
"""An id in the interactions that the items table lacks; an item whose JPEG is cut; an item with neither text nor image."""


class Outcome(NamedTuple):
    """How a command ended."""

    status: int
    output: str
    errors: str

    @property
    def error_lines(self) -> list[str]:
        return [line for line in self.errors.splitlines() if line.startswith("error: ")]


class Command:
    """`cemg …` in this process, through the entry point that the installed script calls."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch = monkeypatch
        self.capsys = capsys

    def __call__(self, *arguments: object) -> Outcome:
        self.monkeypatch.setattr(sys, "argv", ["cemg", *map(str, arguments)])
        self.capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        captured = self.capsys.readouterr()
        return Outcome(int(ended.value.code or 0), captured.out, captured.err)


def save_model(folder: Path, item_ids: list[str], seed: int = 0) -> CEMGForConditionalGeneration:
    """A small untrained generator over a catalogue, saved with its tokenizer."""
    torch.manual_seed(seed)
    codes = torch.randperm(8**4)[: len(item_ids)]
    digits = torch.stack([codes // 8**level % 8 for level in range(4)], dim=1)
    tokenizer = CEMGTokenizer(item_ids=item_ids, item_codes=digits, num_levels=4, codebook_size=8)
    network = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_heads": 2, "num_layers": 1, "num_decoder_layers": 1}
    model = CEMGForConditionalGeneration(CEMGConfig(**network, **tokenizer.geometry())).eval()
    model.set_tokenizer(tokenizer)
    model.save_pretrained(folder)
    return model


def save_network(folder: Path, item_ids: list[str], kind: str = "sasrec") -> NextItemModel:
    """A small untrained network over whole items, saved with its catalogue as `cemg run --system sasrec` writes it."""
    torch.manual_seed(0)
    size = {"num_items": len(item_ids), "hidden_size": 8, "max_history": 5}
    model: NextItemModel = SASRecForNextItem(SASRecConfig(**size)) if kind == "sasrec" else GRU4RecForNextItem(GRU4RecConfig(**size))
    model.item_ids = list(item_ids)
    model.eval().save_pretrained(folder)
    return model


def write_shop(folder: Path) -> Path:
    """interactions.csv, items.parquet and images/ of a shop with one of each defect that must not stop a run. Returns its recipe."""
    generator = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    ids = np.array([f"item-{row:02d}" for row in range(NUM_ITEMS)])
    bought = np.stack([generator.permutation(NUM_ITEMS)[:LENGTH] for _ in range(NUM_USERS)])
    rows = {
        "user_id": [f"user-{user:02d}" for user in np.repeat(np.arange(NUM_USERS), LENGTH)] + ["user-00"],
        "item_id": [*ids[bought.ravel()], UNKNOWN],
        "timestamp": np.arange(NUM_USERS * LENGTH + 1),
    }
    pl.DataFrame(rows).write_csv(folder / "interactions.csv")
    titles = [None if item == BARE else " ".join(generator.choice(WORDS, 3)) for item in ids]
    pl.DataFrame({"item_id": ids, "title": titles}).write_parquet(folder / "items.parquet")
    for item in ids[ids != BARE]:
        buffer = BytesIO()
        Image.fromarray(generator.integers(0, 255, (16, 16, 3), dtype=np.uint8)).resize((48, 48)).save(buffer, "JPEG")
        content = buffer.getvalue()
        (folder / "images" / f"{item}.jpg").write_bytes(content[:300] if item == TRUNCATED else content)
    recipe = folder / "shop.yaml"
    recipe.write_text(yaml.safe_dump(small_recipe(folder)))
    return recipe


def small_recipe(folder: Path) -> dict[str, object]:
    """Settings under which every stage takes a second or two."""
    return {
        "name": "shop",
        "seed": 1,
        "prepare": {
            "name": "shop",
            "interactions": str(folder / "interactions.csv"),
            "items": str(folder / "items.parquet"),
            "images": str(folder / "images"),
            "min_interactions": 2,
        },
        "encode": {
            "dimension": 8,
            "text": {"encoder": "tfidf", "components": 8},
            "image": {"encoder": "colour-gradient"},
            "collaborative": {"dimension": 8, "epochs": 2, "eval_every": 1},
        },
        "tokenize": {"dimension": 8, "num_levels": 3, "codebook_size": 8, "hidden_dims": [16], "latent_dim": 8, "epochs": 2},
        "finetune": {
            "generator": {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_heads": 2, "num_layers": 1, "num_decoder_layers": 1},
            "loop": {"epochs": 1, "batch_size": 16},
        },
        "evaluate": {"num_beams": 20},
    }
