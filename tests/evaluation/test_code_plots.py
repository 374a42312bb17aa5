"""The page of plots of an item tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cemg_hf.errors import CEMGError
from cemg_hf.evaluation.code_plots import PANELS, plot_codes
from cemg_hf.evaluation.codes import category_purity, code_frequencies, level_usage, modality_contribution, neighbour_preservation


def codes_only(items: int = 300, size: int = 8) -> dict[str, Any]:
    codes = np.random.default_rng(0).integers(0, size, (items, 3))
    return {
        "items": items,
        "codebook_size": size,
        "assignment": "resolved",
        **level_usage(codes, size),
        "frequencies": code_frequencies(codes, size).tolist(),
        "collision_rate_before": None,
        "collision_rate_after": 0.0,
    }


def complete() -> dict[str, Any]:
    generator = np.random.default_rng(1)
    codes = generator.integers(0, 8, (300, 3))
    labels = np.array(["a", "b", "c"], dtype=object)[codes[:, 0] % 3]
    vectors = generator.normal(size=(300, 4))
    return codes_only() | {
        "assignment": "nearest",
        "collision_rate_before": 0.1,
        "moved": 20,
        "spilled": 1,
        "reconstruction_error": 0.4,
        "reconstruction_by_level": [0.7, 0.5, 0.4],
        "residual_share": [0.6, 0.4, 0.3],
        "autoencoder_error": 0.2,
        "pca_error": 0.25,
        "latent_dim": 8,
        "neighbour_preservation": {name: neighbour_preservation(vectors, codes) for name in ("fused", "text")},
        "category_purity": category_purity(codes, labels),
        "categories": 3,
        "modality_contribution": modality_contribution(codes, {"text": generator.permutation(codes)}),
        "alpha_histogram": {"edges": np.linspace(0, 1, 21).tolist(), "counts": list(range(20))},
    }


def shown(metrics: dict[str, Any]) -> int:
    return sum(has_data(metrics) for has_data, _ in PANELS)


def test_a_complete_page_is_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "inspection.png"
    plot_codes(complete(), path, "A shop")
    with Image.open(path) as image:
        assert image.size == (1800, 1440)
        assert len(np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)) > 50
    assert [entry.name for entry in path.parent.iterdir()] == ["inspection.png"]
    assert shown(complete()) == len(PANELS)


def test_panels_without_data_are_left_out(tmp_path: Path) -> None:
    metrics = codes_only()
    assert shown(metrics) == 2
    plot_codes(metrics, tmp_path / "codes.png")
    with Image.open(tmp_path / "codes.png") as image:
        assert image.size[1] < 600  # one row
    emptied = complete() | {
        "neighbour_preservation": {"fused": {"k": 10, "items": 1, "queries": 0, "depths": []}},
        "category_purity": [{"depth": 1, "prefixes": 0, "items": 0, "purity": None, "chance": None, "nmi": None}],
        "modality_contribution": {},
    }
    del emptied["alpha_histogram"]
    assert shown(emptied) == len(PANELS) - 4


def test_extreme_figures_are_drawn(tmp_path: Path) -> None:
    """Unique first codes (no chance to share one), no collisions, nothing changed, negative NMI."""
    codes = np.arange(8)[:, None].repeat(2, axis=1)
    metrics = complete() | {
        **level_usage(codes, 8),
        "frequencies": code_frequencies(codes, 8).tolist(),
        "neighbour_preservation": {"fused": neighbour_preservation(np.eye(8), codes)},
        "category_purity": [{"depth": 1, "prefixes": 2, "items": 5, "purity": 0.5, "chance": 0.6, "nmi": -0.1}],
        "modality_contribution": modality_contribution(codes, {"text": codes}),
    }
    metrics |= {"collision_rate_before": 0.0, "moved": 0, "spilled": 0}
    plot_codes(metrics, tmp_path / "page.svg")
    assert (tmp_path / "page.svg").read_text().count('id="axes_') == shown(metrics) == len(PANELS)


def test_other_figures_and_formats_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CEMGError, match="no 'levels'"):
        plot_codes({"tokenizer": complete()}, tmp_path / "page.png")
    with pytest.raises(CEMGError, match=r"\.bmp"):
        plot_codes(codes_only(), tmp_path / "page.bmp")
    assert list(tmp_path.iterdir()) == []
