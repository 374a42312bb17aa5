"""Untrained generators over random catalogues, for measurements in which accuracy plays no part."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import BatchEncoding

from cemg_hf import CEMGConfig, CEMGForConditionalGeneration, CEMGTokenizer

LEVELS = 4
HISTORY = 20  # items, so 80 tokens and the start token
NETWORK: dict[str, Any] = {
    "d_model": 128,
    "d_ff": 1024,
    "num_layers": 4,
    "num_decoder_layers": 4,
    "num_heads": 6,
    "d_kv": 64,
    "dropout_rate": 0.0,
}


def random_codes(items: int, codebook_size: int, seed: int = 0, levels: int = LEVELS, *, skewed: bool = False) -> Tensor:
    """(items, M) different codes, drawn uniformly, or by Zipf's law on every level."""
    draw = torch.Generator().manual_seed(seed)
    keys = torch.empty(0, dtype=torch.int64)
    while len(keys) < items:
        count = items + items // 50 + 100
        if skewed:
            odds = 1 / torch.arange(1, codebook_size + 1)
            drawn = torch.stack([torch.multinomial(odds, count, replacement=True, generator=draw) for _ in range(levels)])
            more = (drawn * (codebook_size ** torch.arange(levels)).unsqueeze(1)).sum(0)
        else:
            more = torch.randint(codebook_size**levels, (count,), generator=draw)
        keys = torch.cat([keys, more]).unique()
    keys = keys[torch.randperm(len(keys), generator=draw)[:items]]
    return torch.stack([keys // codebook_size**level % codebook_size for level in reversed(range(levels))], dim=1)


def random_generator(codes: Tensor, codebook_size: int, seed: int = 0, **network: Any) -> CEMGForConditionalGeneration:
    """A new model in evaluation mode with a catalogue of `codes`, its items called "0", "1", …"""
    tokenizer = CEMGTokenizer(
        item_ids=[str(item) for item in range(len(codes))],
        item_codes=codes,
        num_levels=codes.shape[1],
        codebook_size=codebook_size,
        max_history=HISTORY,
    )
    torch.manual_seed(seed)
    model = CEMGForConditionalGeneration(CEMGConfig(**{**NETWORK, **network}, **tokenizer.geometry())).eval()
    model.set_tokenizer(tokenizer)
    return model


def random_histories(model: CEMGForConditionalGeneration, users: int, seed: int = 0) -> BatchEncoding:
    """Token ids and attention mask of `users` full histories."""
    tokenizer = model.tokenizer
    assert tokenizer is not None
    items = torch.randint(len(tokenizer.item_ids), (users, HISTORY), generator=torch.Generator().manual_seed(seed))
    tokens = tokenizer.item_tokens[items].flatten(1)
    ids = torch.cat([torch.full((users, 1), model.config.bos_token_id), tokens], dim=1)
    return BatchEncoding({"input_ids": ids.to(model.device), "attention_mask": torch.ones_like(ids).to(model.device)})
