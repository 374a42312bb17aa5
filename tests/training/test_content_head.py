from __future__ import annotations

import numpy as np
import pytest
import torch

from cemg_hf.models.cemg.modeling_rqvae import CEMGRQVAE, CEMGRQVAEConfig
from cemg_hf.training.content_head import train_content_head
from cemg_hf.training.quantise import FeatureBatches


def catalogue(count: int, missing: float = 0.2) -> tuple[CEMGRQVAE, FeatureBatches, dict[str, torch.Tensor]]:
    """Collaborative vectors that image and text each tell in full."""
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(count, 3))
    vectors = {
        name: (hidden @ rng.normal(size=(3, size)) + 0.05 * rng.normal(size=(count, size))).astype(np.float32)
        for name, size in {"image": 8, "text": 6, "collaborative": 4}.items()
    }
    masks = {name: rng.random(count) > missing for name in vectors}
    torch.manual_seed(0)
    model = CEMGRQVAE(CEMGRQVAEConfig(modality_dims={"image": 8, "text": 6, "collaborative": 4}, dimension=8, content_head_dim=32))
    return model, FeatureBatches(vectors, masks), {name: torch.from_numpy(value) for name, value in vectors.items()}


def test_the_head_predicts_from_either_modality_alone() -> None:
    model, data, vectors = catalogue(1500)
    assert model.content_head is not None
    report = train_content_head(model.content_head, data)
    assert report["explained_variance"] > 0.6
    assert report["cosine"] > 0.8
    for name in ("image", "text"):
        filled, masks = model.fill_collaborative({name: vectors[name]})
        assert bool(masks["collaborative"].all())
        error = (filled["collaborative"] - vectors["collaborative"]).square().mean() / vectors["collaborative"].var()
        assert error < 0.5


def test_known_vectors_and_items_without_content_are_left_alone() -> None:
    model, data, vectors = catalogue(100)
    assert model.content_head is not None
    train_content_head(model.content_head, data)
    has = torch.arange(100) < 50
    filled, masks = model.fill_collaborative(vectors, {"image": has, "text": torch.zeros(100, dtype=torch.bool), "collaborative": ~has})
    assert torch.equal(filled["collaborative"][~has], vectors["collaborative"][~has])
    assert not torch.equal(filled["collaborative"][has], vectors["collaborative"][has])
    filled, masks = model.fill_collaborative({"text": vectors["text"]}, {"text": has})
    assert torch.equal(masks["collaborative"], has)


def test_few_examples_give_their_mean() -> None:
    model, data, vectors = catalogue(10, missing=0.0)
    assert model.content_head is not None
    assert train_content_head(model.content_head, data) == {"items": 10, "explained_variance": None, "cosine": None}
    torch.testing.assert_close(model.content_head.eval()(vectors), vectors["collaborative"].mean(0).expand(10, -1))


@pytest.mark.parametrize("dims", [{"image": 8, "text": 6}, {"collaborative": 4}])
def test_no_head_without_content_and_collaborative_vectors(dims: dict[str, int]) -> None:
    model = CEMGRQVAE(CEMGRQVAEConfig(modality_dims=dims, dimension=8, content_head_dim=32))
    assert model.content_head is None
    features = {name: torch.zeros(2, size) for name, size in dims.items()}
    assert list(model.fill_collaborative(features)[0]) == list(features)
