"""The rule by which a checkpoint is kept."""

from __future__ import annotations

from tokenizer_samples import settings

from cemg_hf.models.cemg.modeling_rqvae import CEMGRQVAE
from cemg_hf.training.tokenizer_selection import Selection


def test_selection_is_by_error_then_perplexity_then_collisions() -> None:
    model = CEMGRQVAE(settings(num_levels=1, codebook_size=2, latent_dim=2).model_config({"text": 4}))

    def kept(*offers: tuple[float, float, float], patience: int = 0) -> tuple[float, list[bool]]:
        selection, stops = Selection(patience), []
        for number, (error, perplexity, collisions) in enumerate(offers):
            model.codebooks.fill_(number)
            metrics = {"reconstruction_error": error, "levels": [{"perplexity": perplexity}], "collision_rate": collisions}
            stops.append(selection.offer(model, number, metrics))
        selection.restore(model)
        return model.codebooks[0, 0, 0].item(), stops

    assert kept((1.0, 9, 0), (0.5, 2, 0.5))[0] == 1  # error first
    assert kept((0.500, 5, 0), (0.504, 7, 0.9))[0] == 1  # within tolerance: perplexity
    assert kept((0.500, 5, 0.2), (0.499, 5, 0.1), (0.498, 5, 0.3))[0] == 1  # then collisions
    assert kept((0.500, 5, 0), (0.5049, 6, 0), (0.5098, 7, 0))[0] == 1  # the tolerance does not creep
    assert kept((1.0, 5, 0), (1.1, 5, 0), (0.9, 5, 0), (0.91, 5, 0), (0.92, 5, 0), patience=2)[1] == [False, False, False, False, True]
    assert kept((1.0, 5, 0), (0.9, 5, 0), (0.8, 5, 0), patience=1)[1] == [False, False, False]
