from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from cemg_hf.errors import CEMGError
from cemg_hf.evaluation.codes import level_usage
from cemg_hf.features import store as store_module
from cemg_hf.features.projection import Projection
from cemg_hf.features.store import FeatureStore, ModalityFeatures
from cemg_hf.models.cemg.assignment_cemg import assign_unique_codes
from cemg_hf.models.cemg.modeling_rqvae import CEMGRQVAE, CEMGRQVAEConfig, reconstruction_loss
from cemg_hf.training.quantise import FeatureBatches, alpha_report, level_report, quantise

WIDTHS = {"image": 6, "text": 9, "collaborative": 4}
ITEMS = 101

Arrays = dict[str, np.ndarray]


@pytest.fixture
def arrays() -> tuple[Arrays, Arrays]:
    """Vectors with a mean far from zero, each modality missing for a third of the items."""
    generator = np.random.default_rng(0)
    vectors = {name: (generator.normal(size=(ITEMS, width)) + 3).astype(np.float32) for name, width in WIDTHS.items()}
    return vectors, {name: generator.random(ITEMS) < 0.67 for name in WIDTHS}


@pytest.fixture
def rqvae() -> CEMGRQVAE:
    torch.manual_seed(0)
    config = CEMGRQVAEConfig(modality_dims=WIDTHS, dimension=9, num_levels=3, codebook_size=5, hidden_dims=[8], latent_dim=4, dropout=0.5)
    return CEMGRQVAE(config)


@pytest.fixture
def store(arrays: tuple[Arrays, Arrays], tmp_path: Path) -> FeatureStore:
    """The same arrays as a store on disk."""
    vectors, masks = arrays
    modalities = {}
    for name, width in WIDTHS.items():
        identity = Projection(np.zeros(width, np.float32), np.eye(width, dtype=np.float32), np.asarray(1, np.float32))
        modalities[name] = ModalityFeatures(vectors[name], masks[name], identity, {"name": name})
    FeatureStore([f"i{row}" for row in range(ITEMS)], modalities).save(tmp_path / "features")
    return FeatureStore.load(tmp_path / "features")


def test_streaming_equals_one_pass_over_everything(rqvae: CEMGRQVAE, arrays: tuple[Arrays, Arrays], store: FeatureStore) -> None:
    vectors, masks = arrays
    found = quantise(rqvae.train(), FeatureBatches.from_store(store, resident_bytes=0), batch_size=7)
    assert rqvae.training
    rqvae.eval()
    with torch.no_grad():
        fused = rqvae.fuse({k: torch.tensor(v) for k, v in vectors.items()}, {k: torch.tensor(v) for k, v in masks.items()})
        latent = rqvae.encoder(fused.x)
        whole = rqvae.quantise(latent)
        error = reconstruction_loss(rqvae.decode(whole.quantised), fused.x, fused.present).item()
        # Every half of x by its mean over the items that have it, written out.
        weights = fused.present.double().repeat_interleave(9, dim=1)
        mean = (fused.x.double() * weights).sum(0) / weights.sum(0)
        variance = reconstruction_loss(mean.expand(ITEMS, -1), fused.x.double(), fused.present).item()
    assert torch.equal(found.codes, whole.codes)
    assert found.latent is not None
    torch.testing.assert_close(found.latent, latent)
    torch.testing.assert_close(found.alpha, fused.alpha)
    assert found.squared_error == pytest.approx(error, rel=1e-5)
    assert found.variance == pytest.approx(variance, rel=1e-5)
    assert found.metrics["reconstruction_error"] == pytest.approx(error / variance, rel=1e-5)
    _, counts = np.unique(whole.codes.numpy(), axis=0, return_counts=True)
    assert found.metrics["collision_rate"] == pytest.approx(counts[counts > 1].sum() / ITEMS)
    assert 0 < found.metrics["collision_rate"] <= 1  # 101 items on 5 codes per level do collide
    assert [level["used_codes"] for level in found.metrics["levels"]] == [len(set(column)) / 5 for column in whole.codes.T.tolist()]


@pytest.mark.parametrize("batch_size", [1, 50, 101, 1000])
def test_batch_size_and_place_of_the_features_do_not_matter(
    rqvae: CEMGRQVAE, arrays: tuple[Arrays, Arrays], store: FeatureStore, batch_size: int
) -> None:
    expected = quantise(rqvae, FeatureBatches(*arrays), batch_size=ITEMS)
    for items in (FeatureBatches(*arrays), FeatureBatches(*arrays, resident_bytes=0), FeatureBatches.from_store(store, resident_bytes=0)):
        found = quantise(rqvae, items, batch_size=batch_size, keep_latent=False)
        assert found.latent is None
        assert torch.equal(found.codes, expected.codes)
        assert found.variance == pytest.approx(expected.variance, rel=1e-5)
        assert found.squared_error == pytest.approx(expected.squared_error, rel=1e-5)


def test_variance_survives_a_mean_that_dwarfs_it(rqvae: CEMGRQVAE, arrays: tuple[Arrays, Arrays]) -> None:
    """A sum of squares minus a squared sum would lose every digit here in single precision."""
    vectors, masks = arrays
    rqvae.fusion.missing_content.data.zero_()
    alone = {"text": vectors["text"] + np.float32(1000)}
    items = FeatureBatches(alone, {"text": masks["text"]})
    found = quantise(rqvae, items, batch_size=10)
    with torch.no_grad():
        x = rqvae.eval().fuse(*items.batch(slice(None))).x[torch.tensor(masks["text"])][:, :9].double()
    assert found.variance == pytest.approx(float((x - x.mean(0)).square().mean()), rel=1e-4)


def test_half_precision_is_read_as_stored(rqvae: CEMGRQVAE, arrays: tuple[Arrays, Arrays]) -> None:
    vectors, masks = arrays
    half = {name: values.astype(np.float16) for name, values in vectors.items()}
    rounded = {name: values.astype(np.float32) for name, values in half.items()}
    one, two = (quantise(rqvae, FeatureBatches(given, masks, resident_bytes=0)) for given in (half, rounded))
    assert torch.equal(one.codes, two.codes)
    assert one.squared_error == two.squared_error


def test_large_latents_go_to_a_file_that_codes_are_resolved_from(
    rqvae: CEMGRQVAE, store: FeatureStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    expected = quantise(rqvae, FeatureBatches.from_store(store))
    monkeypatch.setattr(store_module, "BYTES_IN_MEMORY", 0)
    monkeypatch.setattr(store_module.tempfile, "tempdir", str(tmp_path))
    found = quantise(rqvae, FeatureBatches.from_store(store, resident_bytes=0), batch_size=13)
    assert found.latent is not None
    assert expected.latent is not None
    assert list(tmp_path.glob("tmp*")) == []  # the file has no name to leave behind
    torch.testing.assert_close(found.latent, expected.latent)
    unique, report = assign_unique_codes(found.codes, found.latent, rqvae.codebooks)
    assert len(unique.unique(dim=0)) == ITEMS
    assert report.collision_rate_before == found.metrics["collision_rate"]


@pytest.mark.parametrize("resident_bytes", [0, 2**20])
def test_batches_keep_the_order_of_the_rows_asked_for(arrays: tuple[Arrays, Arrays], store: FeatureStore, resident_bytes: int) -> None:
    vectors, masks = arrays
    items = FeatureBatches.from_store(store, resident_bytes=resident_bytes)
    assert items.resident == (resident_bytes > 0)
    assert len(items) == ITEMS
    rows = torch.tensor([50, 3, 100, 3, 0])
    for asked in (rows, slice(20, 31), rows[:0]):
        features, given = items.batch(asked)
        index = asked if isinstance(asked, slice) else asked.numpy()
        for name in WIDTHS:
            np.testing.assert_array_equal(features[name].numpy(), vectors[name][index])
            np.testing.assert_array_equal(given[name].numpy(), masks[name][index])
            assert features[name].dtype == torch.float32


def test_tensors_are_not_windows_on_the_store(store: FeatureStore) -> None:
    """Writing into a batch must not reach a read-only map (it would kill the process)."""
    for resident_bytes in (0, 2**20):
        items = FeatureBatches.from_store(store, resident_bytes=resident_bytes)
        items.batch(slice(0, 5))[0]["text"].zero_()
    assert store.modalities["text"].vectors[:5].any()


def test_samples_are_distinct_rows_and_follow_the_generator(arrays: tuple[Arrays, Arrays]) -> None:
    items = FeatureBatches(*arrays)
    one, two, other = (items.sample(40, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert len(one.unique()) == 40
    assert torch.equal(one, one.sort().values)
    assert torch.equal(items.sample(ITEMS), torch.arange(ITEMS))
    assert torch.equal(items.sample(10 * ITEMS), torch.arange(ITEMS))


def test_bad_features_are_named(rqvae: CEMGRQVAE, arrays: tuple[Arrays, Arrays]) -> None:
    vectors, masks = arrays
    with pytest.raises(CEMGError, match="no modality"):
        FeatureBatches({}, {})
    with pytest.raises(CEMGError, match=r"vectors\[text\]: shape \(100, 9\), expected \(101, dimension\)"):
        FeatureBatches({**vectors, "text": vectors["text"][:-1]}, masks)
    with pytest.raises(CEMGError, match=r"masks\[image\]: missing"):
        FeatureBatches(vectors, {name: mask for name, mask in masks.items() if name != "image"})
    narrow = {**vectors, "text": vectors["text"][:, :-1]}
    with pytest.raises(CEMGError, match="'text': 8"):
        quantise(rqvae, FeatureBatches(narrow, masks))
    with pytest.raises(CEMGError, match="batch_size"):
        quantise(rqvae, FeatureBatches(vectors, masks), batch_size=0)
    given, missing = int(np.flatnonzero(masks["text"])[-1]), int(np.flatnonzero(~masks["text"])[0])
    vectors["text"][missing] = np.nan  # a masked row may hold anything
    quantise(rqvae, FeatureBatches(vectors, masks), batch_size=10)
    vectors["text"][given, 2] = np.inf
    with pytest.raises(CEMGError, match=rf"vectors\[text\]: row {given} is not finite"):
        quantise(rqvae, FeatureBatches(vectors, masks), batch_size=10)
    rqvae.train()
    with pytest.raises(CEMGError, match="row"):
        quantise(rqvae, FeatureBatches(vectors, masks))
    assert rqvae.training  # also after an error


def test_reports() -> None:
    even = level_report(torch.arange(8) % 4, 8)
    assert even["used_codes"] == 0.5
    assert even["perplexity"] == pytest.approx(4)
    assert level_report(torch.arange(0), 8) == {"used_codes": 0, "perplexity": 1}
    codes = torch.randint(0, 5, (40, 2), generator=torch.Generator().manual_seed(0))
    for column, usage in zip(codes.T, level_usage(codes.numpy(), 8)["levels"], strict=True):
        assert level_report(column, 8).items() <= usage.items()
    alpha = torch.tensor([[0.2, 0.8], [0.4, 0.6], [1.0, 0.0], [0.0, 0.0]])
    report = alpha_report(alpha)
    assert report["items_with_both"] == 2
    assert report["image"]["mean"] == pytest.approx(0.3)
    assert report["text"]["std"] == pytest.approx(0.1)
    assert report["image"]["quantiles"]["0.50"] == pytest.approx(0.3)
    assert alpha_report(alpha[2:]) == {"items_with_both": 0}
