"""Generators with a dense tower beside them, and its scores computed the slow way."""

from __future__ import annotations

import torch
from generator_samples import CODEBOOK_SIZE, NUM_LEVELS, generator, item_tokenizer
from torch import Tensor

from cemg_hf import CEMGRQVAE, CEMGForConditionalGeneration, CEMGRQVAEConfig, CEMGTokenizer
from cemg_hf.models.cemg import DenseSettings, DenseTower

CONTENT_DIM = 4


def tower_settings(**values) -> DenseSettings:
    return DenseSettings(
        **{"hidden_size": 8, "num_layers": 2, "num_heads": 2, "dropout": 0.3, "max_history": 5, "num_negatives": 32} | values
    )


def tower(num_items: int = 60, seed: int = 0, **values) -> DenseTower:
    """A randomly initialised tower in evaluation mode; biases and norms are drawn too, so that none of them is without effect."""
    torch.manual_seed(seed)
    drawn = DenseTower(num_items, tower_settings(**values)).eval()
    with torch.no_grad():
        for parameter in drawn.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return drawn


def hybrid(tokenizer: CEMGTokenizer | None = None, seed: int = 0, dense: dict | None = None, **settings) -> CEMGForConditionalGeneration:
    """A random generator with a random tower, which knows content where the tokenizer does."""
    tokenizer = item_tokenizer() if tokenizer is None else tokenizer
    model = generator(tokenizer, seed, **settings)
    content = {} if tokenizer.item_vectors is None else {"content_dim": tokenizer.item_vectors.shape[1]}
    model.set_dense(tower(len(tokenizer.item_ids), seed + 1, **content | (dense or {})))
    return model


def growing_tokenizer(num_items: int = 60) -> CEMGTokenizer:
    """A tokenizer with content vectors that takes new items: `add_items(ids, {"text": (n, 6)})`."""
    sizes = {"dimension": 4, "num_levels": NUM_LEVELS, "codebook_size": CODEBOOK_SIZE, "hidden_dims": [5], "latent_dim": 3}
    torch.manual_seed(7)
    rqvae = CEMGRQVAE(CEMGRQVAEConfig(modality_dims={"text": 6}, content_vector_dim=CONTENT_DIM, **sizes))
    rqvae.content_basis.copy_(torch.randn(4, CONTENT_DIM))
    return item_tokenizer(num_items, rqvae=rqvae, item_vectors=torch.randn(num_items, CONTENT_DIM))


@torch.no_grad()
def plain_dense_log_probs(model: CEMGForConditionalGeneration, history: list[int], vectors: Tensor) -> Tensor:
    """(N,) log p of the tower after one history without padding, item by item."""
    items = torch.tensor([history[-model.dense.settings.max_history :]], dtype=torch.int64)
    state = model.dense(items, vectors)[0, -1]
    return torch.stack([state @ vector for vector in vectors]).log_softmax(0)
