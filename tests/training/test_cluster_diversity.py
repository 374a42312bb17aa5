"""LETTER's diversity loss against a loop over items and levels, and its clusters."""

from __future__ import annotations

import math

import pytest
import torch
from tokenizer_samples import settings as tokenizer_settings
from tokenizer_samples import shop

from cemg_hf.training.cluster_diversity import ClusterDiversity, balanced_clusters
from cemg_hf.training.tokenizer_training import train_rqvae


@pytest.mark.parametrize(("count", "num_clusters"), [(12, 3), (13, 3), (20, 10), (8, 1)])
def test_clusters_differ_in_size_by_one_at_most(count: int, num_clusters: int) -> None:
    torch.manual_seed(0)
    sizes = torch.bincount(balanced_clusters(torch.randn(count, 4), num_clusters), minlength=num_clusters)
    assert int(sizes.sum()) == count
    assert int(sizes.max() - sizes.min()) <= 1


def test_clusters_are_the_groups_there_are() -> None:
    torch.manual_seed(0)
    groups = torch.arange(24) % 4
    labels = balanced_clusters(20 * torch.eye(4)[groups] + torch.randn(24, 4), 4)
    together = labels.unsqueeze(0) == labels.unsqueeze(1)
    assert (together == (groups.unsqueeze(0) == groups.unsqueeze(1))).double().mean() > 0.85  # centres may start in one group


def test_loss_is_the_one_of_a_loop_over_all_partners() -> None:
    torch.manual_seed(1)
    codebooks, residuals = torch.randn(2, 9, 4), torch.randn(50, 2, 4, requires_grad=True)
    codes = torch.randint(9, (50, 2))
    clusters = ClusterDiversity(3)
    clusters.fit(codebooks)
    found = torch.stack([clusters.loss(codes, residuals, codebooks) for _ in range(400)])
    expected = 0.0
    for level in range(2):
        vectors = codebooks[level]
        products = vectors @ vectors.T / vectors.square().sum(1).mean()
        for code in codes[:, level].tolist():
            begin, size = int(clusters.begin[level, code]), int(clusters.size[level, code])
            members = clusters.members[level, begin : begin + size].tolist()
            assert code in members
            normaliser = math.log(sum(math.exp(float(products[code, other])) for other in range(9) if other != code))
            partners = [other for other in members if other != code]
            expected += sum(normaliser - float(products[code, other]) for other in partners) / len(partners) / 100
    assert float(found.mean().detach()) == pytest.approx(expected, abs=0.01)
    assert float(found.detach().std()) > 0  # partners are drawn
    found[0].backward()
    assert torch.isfinite(residuals.grad).all()
    assert residuals.grad.abs().sum() > 0


@pytest.mark.parametrize("codebook_size", [2, 3, 5])
def test_small_codebooks_make_fewer_clusters(codebook_size: int) -> None:
    clusters = ClusterDiversity(10)
    codebooks = torch.randn(2, codebook_size, 3)
    clusters.fit(codebooks)
    codes = torch.randint(codebook_size, (7, 2))
    assert torch.isfinite(clusters.loss(codes, torch.randn(7, 2, 3), codebooks))


def test_training_with_clusters_differs_and_leaves_the_default_alone() -> None:
    vectors, masks, _ = shop(120)
    short = {"epochs": 4, "evaluation_interval": 2, "patience": 0}
    plain, _ = train_rqvae(vectors, masks, tokenizer_settings(**short, lambda_div=0.0), seed=1)
    unused, _ = train_rqvae(vectors, masks, tokenizer_settings(**short, lambda_div=0.0, diversity="clusters"), seed=1)
    spread, report = train_rqvae(vectors, masks, tokenizer_settings(**short, lambda_div=1.0, diversity="clusters"), seed=1)
    assert torch.equal(plain.codebooks, unused.codebooks)
    assert not torch.equal(plain.codebooks, spread.codebooks)
    assert spread.config.lambda_div == 0  # the model's own diversity loss, the entropy, has no part in it
    assert math.isfinite(report["reconstruction_error"])
