"""A small shop with everything the demo shows, and two untrained models of it: pictures, categories, shoppers, and titles that attack."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import polars as pl
import torch
from PIL import Image

from cemg_hf import CEMGConfig, CEMGForConditionalGeneration, CEMGTokenizer
from cemg_hf.models.cemg.dense_cemg import DenseSettings, DenseTower
from cemg_hf.recipes import load_recipe
from cemg_hf.training.pipeline import run

NUM_ITEMS, NUM_USERS, LENGTH = 48, 40, 7
KINDS, COLOURS = ("Mug", "Lamp", "Scarf", "Clock"), ("red", "green", "blue", "amber", "violet", "grey")
RGB = {"red": (200, 40, 40), "green": (40, 160, 70), "blue": (40, 70, 200), "amber": (230, 170, 40)}
RGB |= {"violet": (140, 60, 180), "grey": (120, 120, 120)}
HOSTILE = {
    "item-03": "<img src=x onerror=\"document.title='attacked'\">",
    "item-07": "</span><script>document.title='attacked'</script>",
    "item-11": "${document.title='attacked'} {{constructor}} `quoted`",
    "item-15": '" autofocus onfocus="document.title=\'attacked\'" x="',
}
BARE, UNPICTURED = "item-20", "item-21"
"""An item without title and picture, and one without a picture."""


def picture(colour: str, seed: int = 0) -> bytes:
    """A PNG of a colour, with a little noise."""
    noise = np.random.default_rng(seed).integers(-20, 20, (48, 48, 3))
    buffer = BytesIO()
    Image.fromarray(np.clip(np.array(RGB[colour]) + noise, 0, 255).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def item_ids() -> list[str]:
    return [f"item-{row:02d}" for row in range(NUM_ITEMS)]


def write_tables(folder: Path) -> None:
    """interactions.parquet and items.parquet, as a user brings them."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for row, item_id in enumerate(item_ids()):
        kind, colour = KINDS[row % len(KINDS)], COLOURS[row // len(KINDS) % len(COLOURS)]
        title = HOSTILE.get(item_id, f"{colour.title()} {kind} of the Café, no. {row // (len(KINDS) * len(COLOURS)) + 1}")
        content = picture(colour, row)
        rows.append(
            {
                "item_id": item_id,
                "title": None if item_id == BARE else title,
                "brand": None if item_id == BARE else f"Maker {row % 3}",
                "categories": [] if item_id == BARE else ["Home" if kind in ("Mug", "Lamp", "Clock") else "Wear", f"{kind}s"],
                "description": None if item_id == BARE else f"A {colour} {kind.lower()} for every day.",
                "image": {"bytes": None if item_id in (BARE, UNPICTURED) else content, "path": None},
            }
        )
    pl.DataFrame(rows).write_parquet(folder / "items.parquet")
    rng = np.random.default_rng(0)
    bought = np.stack([rng.permutation(NUM_ITEMS)[:LENGTH] for _ in range(NUM_USERS)])
    ids = np.array(item_ids())
    pl.DataFrame(
        {
            "user_id": [f"user-{user:02d}" for user in np.repeat(np.arange(NUM_USERS), LENGTH)],
            "item_id": ids[bought.ravel()],
            "timestamp": np.arange(NUM_USERS * LENGTH),
        }
    ).write_parquet(folder / "interactions.parquet")


def untrained(tokenizer: CEMGTokenizer, seed: int, dense: bool = False) -> CEMGForConditionalGeneration:
    """A generator with large random weights, so that rankings and attention differ visibly."""
    torch.manual_seed(seed)
    network = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_heads": 4, "num_layers": 1, "num_decoder_layers": 2, "dropout_rate": 0.1}
    model = CEMGForConditionalGeneration(CEMGConfig(**network, **tokenizer.geometry())).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.6)
        model.recency_bias.weight.normal_()
    model.set_tokenizer(tokenizer)
    if dense:
        assert tokenizer.item_vectors is not None
        settings = DenseSettings(hidden_size=16, num_layers=1, num_heads=2, max_history=50, content_dim=tokenizer.item_vectors.shape[1])
        model.set_dense(DenseTower(len(tokenizer.item_ids), settings), dense_weight=0.5)
        model.eval()
    return model


def write_run(folder: Path) -> Path:
    """A run folder: dataset/, features/, tokenizer/ by the real stages, and the untrained models model/ and dense/."""
    write_tables(folder / "raw")
    settings = {
        "prepare.name": "tiny",
        "prepare.interactions": str(folder / "raw" / "interactions.parquet"),
        "prepare.items": str(folder / "raw" / "items.parquet"),
        "prepare.min_interactions": 1,
        "encode.dimension": 8,
        "encode.text.components": 8,
        "encode.collaborative.dimension": 8,
        "encode.collaborative.epochs": 1,
        "tokenize.dimension": 8,
        "tokenize.num_levels": 3,
        "tokenize.codebook_size": 4,
        "tokenize.hidden_dims": [16],
        "tokenize.latent_dim": 8,
        "tokenize.epochs": 1,
        "tokenize.next_item.epochs": 1,
        "tokenize.content_head_dim": 16,
        "tokenize.content_vector_dim": 8,
    }
    run(load_recipe("own-data", [], settings, "cemg"), folder, until="tokenize", command="test")
    tokenizer = CEMGTokenizer.from_pretrained(folder / "tokenizer").with_layout(base_vocab_size=2, max_history=5)
    untrained(tokenizer, seed=1).save_pretrained(folder / "model")
    untrained(tokenizer, seed=2, dense=True).save_pretrained(folder / "dense")
    return folder
