from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

import cemg_hf.models.cemg.modeling_rqvae as modeling_rqvae
from cemg_hf.models.cemg.modeling_rqvae import CEMGRQVAE, CEMGRQVAEConfig, GuidedFusion, reconstruction_loss, squared_distances

DIMS = {"image": 6, "text": 8, "collaborative": 4}


def build(dims: dict[str, int] | None = None, **settings: object) -> CEMGRQVAE:
    torch.manual_seed(0)
    values: dict[str, object] = {"dimension": 8, "num_levels": 3, "codebook_size": 16, "latent_dim": 5, "hidden_dims": [12]}
    return CEMGRQVAE(CEMGRQVAEConfig(modality_dims=dims or DIMS, **{**values, **settings})).eval()


def features(count: int = 30, dims: dict[str, int] | None = None, seed: int = 1) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(count, size, generator=generator) for name, size in (dims or DIMS).items()}


def all_mask_patterns() -> dict[str, Tensor]:
    """The 8 patterns of presence, one item each."""
    bits = torch.arange(8)
    return {name: (bits >> position & 1).bool() for position, name in enumerate(DIMS)}


def test_alpha_is_a_distribution_over_the_modalities_present() -> None:
    masks = all_mask_patterns()
    fused = build().fuse(features(8), masks)
    given = torch.stack([masks["image"], masks["text"]], 1)
    assert (fused.alpha[~given] == 0).all()
    torch.testing.assert_close(fused.alpha.sum(1), given.any(1).float())
    torch.testing.assert_close(fused.alpha[given.sum(1) == 1].amax(1), torch.ones(4))
    assert (fused.alpha[given.all(1)] > 0).all()
    torch.testing.assert_close(fused.present, torch.stack([given.any(1), masks["collaborative"]], 1))
    assert fused.x.isfinite().all()


def test_alpha_follows_the_formula_of_equation_2() -> None:
    model, values = build(), features()
    fusion = model.fusion
    projected = {name: fusion.projections[name](value) for name, value in values.items()}
    query = projected["collaborative"] @ fusion.query.weight.T
    scores = torch.stack([(query * (projected[name] @ fusion.key.weight.T)).sum(1) / 8**0.5 for name in ("image", "text")], 1)
    alpha = scores.softmax(1)
    fused = model.fuse(values)
    torch.testing.assert_close(fused.alpha, alpha)
    content = (alpha[:, :1] * projected["image"] + alpha[:, 1:] * projected["text"]) / alpha.norm(dim=1, keepdim=True)
    torch.testing.assert_close(fused.x, torch.cat([content, projected["collaborative"]], 1))


def test_alpha_starts_unsaturated_at_the_papers_dimension() -> None:
    torch.manual_seed(0)
    fusion = GuidedFusion(CEMGRQVAEConfig(modality_dims=dict.fromkeys(DIMS, 768)))
    alpha = fusion(features(200, dict.fromkeys(DIMS, 768))).alpha
    assert 0.02 < alpha[:, 0].std() < 0.3
    assert alpha.min() > 0.02


@pytest.mark.parametrize("fusion", ["guided", "equal"])
def test_values_of_masked_rows_have_no_influence(fusion: str) -> None:
    model, masks, values = build(fusion=fusion), all_mask_patterns(), features(8)
    poisoned = {name: value.masked_fill(~masks[name][:, None], float("nan")) for name, value in values.items()}
    assert model(values, masks).loss == model(poisoned, masks).loss
    assert model(poisoned, masks).loss.isfinite()
    assert model.warmup_loss(values, masks) == model.warmup_loss(poisoned, masks)
    assert torch.equal(model.encode_codes(values, masks), model.encode_codes(poisoned, masks))
    model(poisoned, masks).loss.backward()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in model.parameters())


def test_a_modality_left_out_equals_one_masked_for_all() -> None:
    model, values = build(), features()
    without = {name: value for name, value in values.items() if name != "collaborative"}
    masked = model.fuse(values, {"collaborative": torch.zeros(30, dtype=torch.bool)})
    torch.testing.assert_close(model.fuse(without).x, masked.x)
    torch.testing.assert_close(model.fuse(without).alpha, masked.alpha)


def test_equal_fusion_is_the_mean_of_what_is_present() -> None:
    fused = build(fusion="equal").fuse(features(8), all_mask_patterns())
    assert set(fused.alpha.ravel().tolist()) == {0.0, 0.5, 1.0}


def test_reconstruction_leaves_fillers_out_in_value_and_gradient() -> None:
    target, present = torch.randn(4, 6), torch.tensor([[True, False], [True, True], [False, True], [False, False]])
    guess = torch.zeros(4, 6, requires_grad=True)
    loss = reconstruction_loss(guess, target, present)
    entries = present.repeat_interleave(3, 1)
    torch.testing.assert_close(loss, target[entries].square().mean())
    assert reconstruction_loss(guess, target + 5 * ~entries, present) == loss
    loss.backward()
    assert (guess.grad[~entries] == 0).all()
    assert (guess.grad[entries] != 0).all()
    assert reconstruction_loss(guess, target, torch.zeros(4, 2, dtype=torch.bool)) == 0


def test_the_target_is_not_trainable_but_attention_learns_through_the_input() -> None:
    target = torch.randn(3, 4, requires_grad=True)
    assert not reconstruction_loss(torch.zeros(3, 4), target, torch.ones(3, 2, dtype=torch.bool)).requires_grad
    model = build()
    model(features()).loss.backward()
    assert model.fusion.query.weight.grad.abs().sum() > 0
    assert model.fusion.key.weight.grad.abs().sum() > 0


def test_quantise_takes_the_nearest_code_of_every_level_and_sums_the_vectors() -> None:
    model = build()
    latent = torch.randn(50, 5)
    found = model.quantise(latent)
    residual = latent.clone()
    for level in range(3):
        torch.testing.assert_close(found.residuals[:, level], residual)
        distance = torch.cdist(residual.double(), model.codebooks[level].double(), compute_mode="donot_use_mm_for_euclid_dist")
        assert torch.equal(found.codes[:, level], distance.argmin(1))
        residual = residual - model.codebooks[level, found.codes[:, level]]
    chosen = torch.stack([model.codebooks[level, found.codes[:, level]] for level in range(3)]).sum(0)
    torch.testing.assert_close(found.quantised, chosen)
    torch.testing.assert_close(latent - residual, chosen)


def test_straight_through_gradient_reaches_encoder_and_only_commitment_pulls_it_to_the_codes() -> None:
    model = build(lambda_quant=0.0, lambda_div=0.0)
    model(features()).loss.backward()
    assert model.encoder.linear.weight.grad.abs().sum() > 0
    output = build()(features())
    found = (output.residuals - build().codebooks[torch.arange(3), output.codes]).square().mean((0, 2)).sum()
    torch.testing.assert_close(output.quantisation, 1.25 * found)
    torch.testing.assert_close(output.loss, output.reconstruction + 0.25 * output.quantisation + 0.01 * output.diversity)


def test_diversity_is_lowest_when_codes_are_used_evenly() -> None:
    model = build(num_levels=1, codebook_size=2, latent_dim=1)
    model.set_codes(0, torch.tensor([[-1.0], [1.0]]))
    even = model.diversity_loss(torch.tensor([[[-1.1]], [[1.1]]]))
    skewed = model.diversity_loss(torch.tensor([[[-1.1]], [[-1.2]]]))
    assert 0 <= even < 1e-6
    assert skewed > 0.5


def test_linear_initialisation_is_pca() -> None:
    model, values = build({"text": 8, "collaborative": 8}), features(200, {"text": 8, "collaborative": 8})
    x = model.fuse(values).x
    _, _, directions = torch.linalg.svd(x - x.mean(0), full_matrices=False)
    components = directions[:5]
    model.initialise_linear(components, x.mean(0), scale=3.0)
    latent = model.encode(values)
    torch.testing.assert_close(latent, 3.0 * (x - x.mean(0)) @ components.T, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(model.decode(latent), (x - x.mean(0)) @ components.T @ components + x.mean(0), atol=1e-4, rtol=1e-4)


def test_projection_keeps_lengths_up_to_the_block_scale() -> None:
    fusion = GuidedFusion(CEMGRQVAEConfig(modality_dims={"text": 8, "collaborative": 4}, dimension=8))
    values = torch.randn(20, 4)
    torch.testing.assert_close(fusion.projections["collaborative"](values).norm(dim=1), values.norm(dim=1) * 2**0.5)
    assert torch.equal(fusion.projections["text"](torch.eye(8)), torch.eye(8))


def test_image_and_text_meet_from_opposite_ends() -> None:
    fusion = GuidedFusion(CEMGRQVAEConfig(modality_dims={"image": 3, "text": 4}, dimension=8))
    image, text = (fusion.projections[name].weight.abs().sum(1) > 0 for name in ("image", "text"))
    assert not (image & text).any()
    assert image.nonzero().flatten().tolist() == [5, 6, 7]
    assert fusion.projections["image"].weight[7, 0] > 0


def test_codes_survive_safetensors_and_do_not_depend_on_batches_or_mode() -> None:
    model, values = build(dropout=0.5), features(40)
    masks = {"collaborative": torch.arange(40) % 3 > 0}
    codes = model.encode_codes(values, masks)
    assert codes.dtype == torch.int64
    copy = CEMGRQVAE(CEMGRQVAEConfig.from_dict(json.loads(json.dumps(model.config.to_dict()))))
    copy.load_state_dict(load(save(model.state_dict())))
    assert torch.equal(copy.train().encode_codes(values, masks, batch_size=7), codes)
    assert copy.training
    assert model.encode_codes(features(0)).shape == (0, 3)


def test_squared_distances_match_cdist() -> None:
    points, centres = torch.randn(2, 7, 3), torch.randn(2, 4, 3)
    torch.testing.assert_close(squared_distances(points, centres), torch.cdist(points, centres).square(), atol=1e-5, rtol=1e-4)


def test_bad_settings_and_features_are_named() -> None:
    with pytest.raises(ValueError, match="modality_dims"):
        CEMGRQVAEConfig(modality_dims={"audio": 3})
    with pytest.raises(ValueError, match="modality_dims: empty"):
        CEMGRQVAEConfig()
    with pytest.raises(ValueError, match="fusion: 'sum'"):
        CEMGRQVAEConfig(modality_dims=DIMS, fusion="sum")
    with pytest.raises(ValueError, match="codebook_size: 0"):
        CEMGRQVAEConfig(modality_dims=DIMS, codebook_size=0)
    with pytest.raises(ValueError, match="unknown keys codebok_size"):
        CEMGRQVAEConfig.from_dict({"modality_dims": DIMS, "codebok_size": 3})
    with pytest.raises(ValueError, match=r"features\[text\]: shape \(5, 3\)"):
        build().fuse({"text": torch.zeros(5, 3)})
    with pytest.raises(ValueError, match="modality 'image' is not one"):
        build({"text": 8}).fuse({"image": torch.zeros(5, 6)})
    with pytest.raises(ValueError, match="features: empty"):
        build().fuse({})


def test_imports_only_what_travels_with_a_checkpoint() -> None:
    tree = ast.parse(Path(modeling_rqvae.__file__).read_text())
    names = {alias.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {(node.module or "").split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level == 0}
    assert names <= {"__future__", "collections", "dataclasses", "itertools", "typing", "torch", "transformers"}
