from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from feature_samples import WORDS, item_table, jpeg
from PIL import Image

from cemg_hf.errors import CEMGError
from cemg_hf.features.image import ImageConfig
from cemg_hf.features.light import ColourGradientImageEncoder, TfidfTextEncoder, describe_image, soft_histogram
from cemg_hf.features.text import TextConfig


@pytest.fixture
def titles() -> list[str | None]:
    generator = np.random.default_rng(0)
    return [None, *(" ".join(generator.choice(WORDS, 6)) for _ in range(60)), ""]


def tfidf() -> TfidfTextEncoder:
    return TfidfTextEncoder(TextConfig(encoder="tfidf", components=16))


def test_tfidf_is_deterministic_and_masks_what_has_no_text(titles: list[str | None]) -> None:
    items = item_table(titles)
    encoders = [tfidf(), tfidf()]
    for encoder in encoders:
        encoder.fit(items, seed=3)
    first, second = (encoder.encode(items) for encoder in encoders)
    np.testing.assert_array_equal(first.vectors, second.vectors)
    assert encoders[0].fingerprint == encoders[1].fingerprint
    assert first.vectors.shape == (62, 16)
    assert first.mask.tolist() == [False] + [True] * 60 + [False]


def test_tfidf_puts_texts_that_share_words_together(titles: list[str | None]) -> None:
    encoder = tfidf()
    encoder.fit(item_table(titles), seed=0)
    near, same, far = encoder.encode(item_table(["red wool shirt", "red wool shirt and", "blue lamp"])).vectors
    assert np.dot(near, same) > np.dot(near, far)


def test_reloaded_tfidf_gives_the_same_bits(titles: list[str | None], tmp_path: Path) -> None:
    encoder = tfidf()
    encoder.fit(item_table(titles), seed=0)
    encoder.save(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == set(encoder.describe()["files"])
    loaded = TfidfTextEncoder.load(TextConfig(**encoder.describe()["settings"]), tmp_path)
    new = item_table(["red shoe by the lamp", "zzz unheard-of", None, *titles])
    expected, raw = encoder.encode(new), loaded.encode(new)
    np.testing.assert_array_equal(raw.vectors, expected.vectors)
    assert raw.mask[:3].tolist() == [True, False, False]
    assert loaded.fingerprint == encoder.fingerprint


def test_tfidf_of_few_or_no_texts() -> None:
    encoder = tfidf()
    encoder.fit(item_table([None, None]), seed=0)
    assert not encoder.encode(item_table([None, ""])).mask.any()
    encoder.fit(item_table(["red shoe", "blue shoe", None]), seed=0)
    assert np.isfinite(encoder.encode(item_table(["red shoe"])).vectors).all()
    with pytest.raises(CEMGError, match="no words"):
        encoder.fit(item_table(["?", "!"]), seed=0)
    with pytest.raises(CEMGError, match="not been fitted"):
        tfidf().encode(item_table(["red"]))


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(CEMGError, match=r"text_encoder\.json"):
        TfidfTextEncoder.load(TextConfig(encoder="tfidf"), tmp_path)


def test_soft_histogram_shares_values_linearly() -> None:
    values = np.random.default_rng(0).random((500, 3))
    bins = (4, 6, 6)
    histogram = soft_histogram(values, bins).reshape(bins)
    assert histogram.sum() == pytest.approx(1)
    # Linear shares keep the mean of every axis.
    for axis, count in enumerate(bins):
        marginal = histogram.sum(axis=tuple(other for other in range(3) if other != axis))
        assert marginal @ np.linspace(0, 1, count) == pytest.approx(values[:, axis].mean())


def test_soft_histogram_does_not_jump_at_bin_edges() -> None:
    steps = np.stack([soft_histogram(np.full((1, 3), value), (4, 6, 6)) for value in np.linspace(0, 1, 1001)])
    assert np.linalg.norm(np.diff(steps, axis=0), axis=1).max() < 0.02
    assert np.linalg.norm(steps[490] - steps[900]) > 0.3


def test_descriptor_tells_colours_and_shapes_apart() -> None:
    def stripes(colour: tuple[int, int, int], vertical: bool) -> np.ndarray:
        pixels = np.full((48, 48, 3), 255, dtype=np.uint8)
        (pixels.transpose(1, 0, 2) if vertical else pixels)[::8] = colour
        return describe_image(Image.fromarray(pixels))

    red, green, red_vertical = stripes((220, 0, 0), False), stripes((0, 160, 0), False), stripes((220, 0, 0), True)
    n_colour = 4 * 6 * 6
    assert np.linalg.norm(red[:n_colour] - green[:n_colour]) > 0.3
    np.testing.assert_allclose(red[:n_colour], red_vertical[:n_colour], atol=0.05)
    gradients = slice(n_colour + 48, None)
    assert np.linalg.norm(red[gradients] - red_vertical[gradients]) > 0.5
    assert np.linalg.norm(red[gradients] - green[gradients]) < 0.3


def test_colour_gradient_masks_and_repeats() -> None:
    images = [jpeg(1), None, jpeg(2)[:200], jpeg(2), jpeg(1)]
    encoder = ColourGradientImageEncoder(ImageConfig(encoder="colour-gradient", batch_size=2))
    raw, again = (encoder.encode(item_table(["x"] * 5, images)) for _ in range(2))
    assert raw.vectors.shape == (5, encoder.dimension)
    assert raw.mask.tolist() == [True, False, False, True, True]
    assert list(raw.unreadable) == [2]
    np.testing.assert_array_equal(raw.vectors, again.vectors)
    np.testing.assert_array_equal(raw.vectors[0], raw.vectors[4])
    assert np.linalg.norm(raw.vectors[0] - raw.vectors[3]) > 0.1
    assert np.isfinite(describe_image(Image.new("RGB", (10, 10), "black"))).all()
    assert encoder.encode(item_table(["x"])).vectors.shape == (1, encoder.dimension)
