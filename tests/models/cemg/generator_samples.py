"""Small catalogues, tokenizers and generators, and the slow obvious ways to score them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from cemg_hf import CEMGRQVAE, CEMGConfig, CEMGForConditionalGeneration, CEMGRQVAEConfig, CEMGTokenizer, Recommendation

NUM_LEVELS, CODEBOOK_SIZE = 3, 8


def random_codes(num_items: int, num_levels: int = NUM_LEVELS, codebook_size: int = CODEBOOK_SIZE, seed: int = 0) -> Tensor:
    """(N, M) different codes."""
    drawn = torch.randperm(codebook_size**num_levels, generator=torch.Generator().manual_seed(seed))[:num_items]
    return torch.stack([drawn // codebook_size**level % codebook_size for level in reversed(range(num_levels))], dim=1)


@st.composite
def catalogues(draw, max_items: int = 30) -> tuple[Tensor, int]:
    """Codes (N, M) of a random catalogue, from one item to all K^M, and K."""
    num_levels, codebook_size = draw(st.integers(1, 4)), draw(st.integers(2, 5))
    num_items = draw(st.integers(1, min(max_items, codebook_size**num_levels)))
    return random_codes(num_items, num_levels, codebook_size, seed=draw(st.integers(0, 10**6))), codebook_size


def item_tokenizer(num_items: int = 60, seed: int = 0, **settings) -> CEMGTokenizer:
    num_levels, codebook_size = settings.pop("num_levels", NUM_LEVELS), settings.pop("codebook_size", CODEBOOK_SIZE)
    return CEMGTokenizer(
        item_ids=[f"item{index}" for index in range(num_items)],
        item_codes=random_codes(num_items, num_levels, codebook_size, seed),
        num_levels=num_levels,
        codebook_size=codebook_size,
        **{"max_history": 5, **settings},
    )


def rqvae_parts() -> dict:
    """An RQ-VAE, encoders and projections as `tokenize` attaches them."""
    torch.manual_seed(3)
    config = CEMGRQVAEConfig(
        modality_dims={"text": 6, "collaborative": 4},
        dimension=4,
        num_levels=NUM_LEVELS,
        codebook_size=CODEBOOK_SIZE,
        hidden_dims=[5],
        latent_dim=3,
    )
    return {
        "rqvae": CEMGRQVAE(config),
        "encoders": {"text": {"name": "tf-idf", "fingerprint": "a1", "size": 6}, "collaborative": {"name": "lightgcn", "layers": [1, 2]}},
        "projections": {
            "text": {"mean": torch.randn(9), "components": torch.randn(6, 9).T.contiguous().T, "scale": torch.tensor(0.3)},
            "collaborative": {"mean": torch.randn(4).double()},
        },
    }


def small_config(tokenizer: CEMGTokenizer, **settings) -> CEMGConfig:
    network = {"num_layers": 2, "num_decoder_layers": 2, "d_model": 32, "d_ff": 64, "num_heads": 4, "d_kv": 8, "dropout_rate": 0.0}
    return CEMGConfig(**{**network, **tokenizer.geometry(), **settings})


def generator(tokenizer: CEMGTokenizer, seed: int = 0, **settings) -> CEMGForConditionalGeneration:
    """A randomly initialised model in evaluation mode, its catalogue attached. Its bias by age is drawn too: a new one is zero."""
    torch.manual_seed(seed)
    model = CEMGForConditionalGeneration(small_config(tokenizer, **settings)).eval()
    if model.config.item_causal:
        torch.nn.init.normal_(model.recency_bias.weight)
    model.set_tokenizer(tokenizer)
    return model


@torch.no_grad()
def plain_logits(model: CEMGForConditionalGeneration, history: list[str]) -> Tensor:
    """(N, M, K) fp32 logits of every level after the codes of every item, by T5's own forward on the teacher-forced codes."""
    tokenizer, config = model.tokenizer, model.config
    count = len(tokenizer.item_ids)
    inputs = tokenizer([history], return_tensors="pt")
    start = torch.full((count, 1), config.decoder_start_token_id)
    logits = model(
        input_ids=inputs["input_ids"].expand(count, -1),
        attention_mask=inputs["attention_mask"].expand(count, -1),
        decoder_input_ids=torch.cat([start, tokenizer.item_tokens[:, :-1]], dim=1),
    ).logits.float()
    levels = logits[..., config.first_code_id :].unflatten(-1, (config.num_levels, config.codebook_size))
    return levels.diagonal(dim1=1, dim2=2).movedim(-1, 1)


def plain_scores(model: CEMGForConditionalGeneration, history: list[str]) -> Tensor:
    """(N,) Σ log p of every item, by T5's own forward on the teacher-forced codes and a softmax over each level's slice."""
    log_probs = plain_logits(model, history).log_softmax(dim=-1)
    return log_probs.gather(-1, model.tokenizer.item_codes.unsqueeze(-1)).sum((1, 2))


TOKENIZER = item_tokenizer()
HISTORIES = [["item1", "item2", "item3"], [], ["item5"], [f"item{index}" for index in range(10, 19)]]
CAUSAL = pytest.mark.parametrize("item_causal", [True, False], ids=["item-causal", "bidirectional"])


def ranked_ids(recommendations: list[Recommendation]) -> list[str]:
    return [item.item_id for item in recommendations]


def assert_same_lists(found: list[Recommendation], expected: list[Recommendation], tolerance: float = 1e-5) -> None:
    assert ranked_ids(found) == ranked_ids(expected)
    assert [item.score for item in found] == pytest.approx([item.score for item in expected], abs=tolerance)
