from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from feature_samples import WORDS, item_table, jpeg

from cemg_hf.artefacts import write_json
from cemg_hf.errors import CEMGError
from cemg_hf.features.image import ImageConfig
from cemg_hf.features.items import encode_items, image_encoder, load_encoder, text_encoder
from cemg_hf.features.text import TextConfig

NEW = item_table(["red wool shoe", None], [jpeg(1)[:300], jpeg(2)])


def save(folder: Path, text: TextConfig, image: ImageConfig, cache: Path) -> dict[str, np.ndarray]:
    """Fit and save encoders the way the encode stage does; what they make of NEW."""
    generator = np.random.default_rng(0)
    catalogue = item_table([" ".join(generator.choice(WORDS, 5)) for _ in range(40)])
    encoders = {"image": image_encoder(image, cache), "text": text_encoder(text, cache)}
    folder.mkdir(exist_ok=True)
    for encoder in encoders.values():
        encoder.fit(catalogue, 0)
        encoder.save(folder)
    descriptions = {name: encoder.describe() for name, encoder in encoders.items()}
    write_json(folder / "encoders.json", descriptions | {"collaborative": {"modality": "collaborative", "kind": "lightgcn"}})
    return {name: encoder.encode(NEW).vectors for name, encoder in encoders.items()}


def test_new_items_by_light_encoders(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected = save(tmp_path, TextConfig(encoder="tfidf", components=8), ImageConfig(encoder="colour-gradient"), tmp_path)
    encoded = encode_items(NEW, tmp_path)
    assert set(encoded) == {"image", "text"}
    for name, (vectors, mask) in encoded.items():
        np.testing.assert_array_equal(vectors, expected[name])
        assert mask.tolist() == ([True, False] if name == "text" else [False, True])
    assert "1 new items have an unreadable image" in caplog.text


def test_new_items_by_pretrained_encoders(bert_folder: Path, vgg_weights: Path, tmp_path: Path) -> None:
    text = TextConfig(encoder=str(bert_folder), device="cpu")
    image = ImageConfig(encoder="vgg11", weights=str(vgg_weights), layer="conv", size=32, device="cpu")
    expected = save(tmp_path / "features", text, image, tmp_path)
    encoded = encode_items(NEW, tmp_path / "features", device="cpu", cache_folder=tmp_path / "other")
    for name, (vectors, _) in encoded.items():
        np.testing.assert_allclose(vectors, expected[name], atol=1e-5)


def test_other_weights_than_described_are_refused(bert_folder: Path, vgg_weights: Path, tmp_path: Path) -> None:
    text = TextConfig(encoder=str(bert_folder), device="cpu")
    encoder = text_encoder(text, tmp_path)
    description = encoder.describe() | {"fingerprint": "of other weights"}
    with pytest.raises(CEMGError, match="verify=False"):
        load_encoder(description, tmp_path)
    assert load_encoder(description, tmp_path, verify=False).fingerprint == encoder.fingerprint
    moved = encoder.describe() | {"settings": encoder.describe()["settings"] | {"encoder": "/gone/elsewhere"}}
    with pytest.raises(CEMGError, match="no folder /gone/elsewhere"):
        load_encoder(moved, tmp_path)
    assert load_encoder(moved, tmp_path, source=str(bert_folder)).fingerprint == encoder.fingerprint


def test_folder_without_descriptions(tmp_path: Path) -> None:
    with pytest.raises(CEMGError, match=r"encoders\.json: no such file"):
        encode_items(NEW, tmp_path)
