"""Small catalogues with code streams, and generators over them."""

from __future__ import annotations

import torch
from torch import Tensor

from cemg_hf.models.cemg import CEMGRQVAE, CEMGRQVAEConfig
from cemg_hf.models.mscgrec import MSCGRecConfig, MSCGRecForConditionalGeneration, MSCGRecTokenizer, StreamQuantisers
from cemg_hf.models.mscgrec.quantisers_mscgrec import head_of

STREAMS = ["collaborative", "text", "image"]
LEVELS, SIZE, ITEMS = 3, 6, 40
HISTORIES = [["item1", "item2", "item3"], [], ["item5"], [f"item{index}" for index in range(10, 19)]]


def stream_codes(num_items: int = ITEMS, streams: int = 3, seed: int = 0) -> Tensor:
    """(N, S, M) codes, unique within every stream."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.stack([torch.randperm(SIZE**LEVELS, generator=generator)[:num_items] for _ in range(streams)], dim=1)
    return torch.stack([drawn // SIZE**level % SIZE for level in reversed(range(LEVELS))], dim=2)


def stream_tokenizer(num_items: int = ITEMS, streams: list[str] = STREAMS, seed: int = 0, **settings) -> MSCGRecTokenizer:
    """Every fourth item lacks the first stream, every fifth the last; item 0 has nothing at all."""
    items = torch.arange(num_items)
    mask = torch.ones(num_items, len(streams), dtype=torch.bool)
    mask[items % 4 == 3, 0] = False
    mask[items % 5 == 4, -1] = False
    mask[0] = False
    return MSCGRecTokenizer(
        item_ids=[f"item{index}" for index in range(num_items)],
        stream_codes=stream_codes(num_items, len(streams), seed),
        **{"stream_mask": mask, "streams": streams, "num_levels": LEVELS, "codebook_size": SIZE, "max_history": 5} | settings,
    )


SIZES = {"collaborative": 4, "text": 5, "image": 6}
RAW_TEXT = 7


def stream_quantisers(streams: list[str] = STREAMS, head: bool = True, seed: int = 0, **settings) -> StreamQuantisers:
    """Random networks, whose codes depend on what they are shown."""
    torch.manual_seed(seed)
    shape = {"dimension": 6, "num_levels": LEVELS, "codebook_size": SIZE, "hidden_dims": [5], "latent_dim": 3} | settings
    networks = {name: CEMGRQVAE(CEMGRQVAEConfig(modality_dims={name: SIZES[name]}, **shape)) for name in streams}
    return StreamQuantisers(networks, head_of({name: SIZES[name] for name in streams}, 8 if head else 0))


def growing_stream_tokenizer(streams: list[str] = STREAMS, head: bool = True, seed: int = 0, **settings) -> MSCGRecTokenizer:
    """A tokenizer that takes new items: raw texts (n, 7) go through a projection, everything else is taken as it is."""
    torch.manual_seed(seed)
    projection = {"mean": torch.randn(RAW_TEXT), "components": torch.randn(SIZES["text"], RAW_TEXT), "scale": torch.tensor(0.5)}
    return stream_tokenizer(
        streams=streams,
        seed=seed,
        quantisers=stream_quantisers(streams, head, seed),
        encoders={"text": {"name": "made up"}},
        projections={"text": projection},
        **settings,
    )


def raw_vectors(count: int, names: tuple[str, ...] = ("text", "image"), seed: int = 5) -> dict[str, Tensor]:
    """Modality -> raw vectors of new items."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(count, SIZES[name] if name != "text" else RAW_TEXT, generator=generator) for name in names}


def stream_generator(tokenizer: MSCGRecTokenizer | None = None, seed: int = 0, **settings) -> MSCGRecForConditionalGeneration:
    """A randomly initialised model in evaluation mode, its catalogue attached."""
    tokenizer = stream_tokenizer() if tokenizer is None else tokenizer
    network = {"num_layers": 2, "num_decoder_layers": 2, "d_model": 32, "d_ff": 64, "num_heads": 4, "d_kv": 8, "dropout_rate": 0.0}
    torch.manual_seed(seed)
    model = MSCGRecForConditionalGeneration(MSCGRecConfig(**{**network, **tokenizer.geometry(), **settings})).eval()
    if model.config.item_causal:
        torch.nn.init.normal_(model.recency_bias.weight)
    model.set_tokenizer(tokenizer)
    return model


@torch.no_grad()
def plain_scores(model: MSCGRecForConditionalGeneration, history: list[str]) -> Tensor:
    """(N,) Σ log p of every item, by T5's own forward on its codes and a softmax over all codes of a level or the permissible ones."""
    tokenizer, config = model.tokenizer, model.config
    assert tokenizer is not None
    codes, count = tokenizer.item_codes, len(tokenizer.item_ids)
    inputs = tokenizer([history], return_tensors="pt")
    start = torch.full((count, 1), config.decoder_start_token_id)
    logits = model(
        input_ids=inputs["input_ids"].expand(count, -1),
        attention_mask=inputs["attention_mask"].expand(count, -1),
        decoder_input_ids=torch.cat([start, tokenizer.item_tokens[:, :-1]], dim=1),
    ).logits
    total = torch.zeros(count)
    for item in range(count):
        for level in range(config.num_levels):
            first = config.first_code_id + level * config.codebook_size
            scores = logits[item, level, first : first + config.codebook_size].double()
            if config.constrained_softmax:
                under = (codes[:, :level] == codes[item, :level]).all(dim=1)
                closed = torch.ones_like(scores, dtype=torch.bool)
                closed[codes[under, level]] = False
                scores = scores.masked_fill(closed, -torch.inf)
            total[item] += scores.log_softmax(0)[codes[item, level]]
    return total
