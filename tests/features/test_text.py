from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from feature_samples import WORDS, item_table
from sklearn.preprocessing import normalize
from transformers import AutoModel, AutoTokenizer, T5Config, T5Model

from cemg_hf.errors import CEMGError
from cemg_hf.features import text as text_module
from cemg_hf.features.text import TextConfig, TransformerTextEncoder, item_texts

TITLES = ["red shoe", None, "warm wool shirt for the new and old", "", "blue lamp", "red shoe", "soft"]


def encoder(folder: Path, cache: Path, **settings: Any) -> TransformerTextEncoder:
    return TransformerTextEncoder(TextConfig(encoder=str(folder), device="cpu", **settings), cache)


def test_item_text_joins_what_there_is() -> None:
    items = pl.DataFrame(
        {
            "title": ["Red  shoe.", None, "Lamp", None],
            "brand": [" ", None, "Acme", None],
            "categories": [["Shoes", None, "Women"], None, [], None],
            "description": ["Very\nnice", None, None, "  "],
        }
    )
    assert item_texts(items).to_list() == ["Red shoe. Shoes, Women. Very nice", None, "Lamp. Acme", None]
    assert item_texts(items.select("title")).to_list() == ["Red shoe", None, "Lamp", None]
    assert item_texts(pl.DataFrame({"item_id": ["a", "b"]})).to_list() == [None, None]


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_vectors_are_the_models_hidden_states(bert_folder: Path, tmp_path: Path, pooling: str) -> None:
    raw = encoder(bert_folder, tmp_path, pooling=pooling, batch_size=2).encode(item_table(TITLES))
    tokenizer, model = AutoTokenizer.from_pretrained(bert_folder), AutoModel.from_pretrained(bert_folder).eval()
    assert raw.mask.tolist() == [True, False, True, False, True, True, True]
    assert not raw.vectors[~raw.mask].any()
    for row in np.flatnonzero(raw.mask):
        with torch.inference_mode():
            hidden = model(**tokenizer(TITLES[row], return_tensors="pt")).last_hidden_state[0]
        expected = hidden[0] if pooling == "cls" else hidden.mean(0)
        np.testing.assert_allclose(raw.vectors[row], expected.numpy(), atol=1e-5)


def test_long_texts_are_cut_to_what_the_model_reads(bert_folder: Path, tmp_path: Path) -> None:
    long = " ".join(WORDS * 10)
    raw = encoder(bert_folder, tmp_path, max_length=10_000).encode(item_table([long, "red"]))
    assert np.isfinite(raw.vectors).all()
    short = encoder(bert_folder, tmp_path, max_length=4).encode(item_table(["red blue green", "red blue shoe"]))
    np.testing.assert_allclose(short.vectors[0], short.vectors[1], atol=1e-6)


def test_cached_texts_need_no_model(bert_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = encoder(bert_folder, tmp_path).encode(item_table(TITLES))
    monkeypatch.setattr(TransformerTextEncoder, "_load", lambda *_: pytest.fail("the model was loaded"))
    second = encoder(bert_folder, tmp_path, batch_size=3).encode(item_table(TITLES))
    np.testing.assert_array_equal(first.vectors, second.vectors)
    np.testing.assert_array_equal(first.mask, second.mask)


def test_killed_encode_resumes_to_the_same_bits(bert_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    titles = [" ".join(np.random.default_rng(row).choice(WORDS, 1 + row % 9)) + f" {row}" for row in range(30)]
    whole = encoder(bert_folder, tmp_path / "whole", batch_size=4).encode(item_table(titles))
    monkeypatch.setattr("cemg_hf.features.text.VectorCache", _every_batch)
    killed = encoder(bert_folder, tmp_path / "killed", batch_size=4)
    model_calls: list[int] = []
    load = killed._load

    def failing_load(device: torch.device) -> tuple[Any, Any]:
        tokenizer, model = load(device)

        def forward(**inputs: torch.Tensor) -> Any:
            model_calls.append(len(inputs["input_ids"]))
            if len(model_calls) == 4:
                raise KeyboardInterrupt
            return model(**inputs)

        return tokenizer, forward

    monkeypatch.setattr(killed, "_load", failing_load)
    with pytest.raises(KeyboardInterrupt):
        killed.encode(item_table(titles))
    shards = list((tmp_path / "killed").rglob("*.safetensors"))
    assert len(shards) == 3
    resumed = encoder(bert_folder, tmp_path / "killed", batch_size=4).encode(item_table(titles))
    np.testing.assert_array_equal(resumed.vectors, whole.vectors)


def _every_batch(folder: Path) -> Any:
    from cemg_hf.features.cache import VectorCache

    return VectorCache(folder, shard_seconds=0)


def test_fingerprint_follows_weights_and_settings_but_not_the_place(bert_folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(bert_folder, copy)
    (copy / "README.md").write_text("another text")
    plain = encoder(bert_folder, tmp_path).fingerprint
    assert encoder(copy, tmp_path, batch_size=7).fingerprint == plain
    assert encoder(copy, tmp_path, pooling="mean").fingerprint != plain
    assert encoder(copy, tmp_path, max_length=5).fingerprint != plain
    model = AutoModel.from_pretrained(copy)
    with torch.no_grad():
        model.embeddings.word_embeddings.weight[7] += 1
    model.save_pretrained(copy)
    assert encoder(copy, tmp_path).fingerprint != plain


def test_variables_in_the_path(bert_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_ENCODERS", str(bert_folder.parent))
    name = f"$TEST_ENCODERS/{bert_folder.name}"
    assert TransformerTextEncoder(TextConfig(encoder=name), tmp_path).fingerprint == encoder(bert_folder, tmp_path).fingerprint
    monkeypatch.delenv("TEST_ENCODERS")
    with pytest.raises(CEMGError, match="TEST_ENCODERS is not set"):
        TransformerTextEncoder(TextConfig(encoder=name), tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"encoder": "/no/such/folder"}, "no folder /no/such/folder"),
        ({"encoder": "nobody/no-such-encoder"}, "nobody/no-such-encoder.*tfidf"),
        ({"pooling": "max"}, "text.pooling = 'max'"),
        ({"batch_size": 0}, "text.batch_size = 0"),
    ],
)
def test_wrong_settings_are_one_line_errors(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(CEMGError, match=message) as caught:
        TransformerTextEncoder(TextConfig(**settings), tmp_path)
    assert "\n" not in str(caught.value)


def test_encoder_decoder_gives_its_encoders_states_but_has_no_cls(bert_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "t5"
    torch.manual_seed(0)
    T5Model(T5Config(vocab_size=40, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0)).save_pretrained(
        folder
    )
    for file in bert_folder.glob("tokenizer*"):
        shutil.copy(file, folder)
    raw = encoder(folder, tmp_path, pooling="mean").encode(item_table(["red shoe", "lamp"]))
    assert raw.vectors.shape == (2, 8)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.cls_token = None
    tokenizer.save_pretrained(folder)
    with pytest.raises(CEMGError, match="no \\[CLS\\] token"):
        encoder(folder, tmp_path, pooling="cls").encode(item_table(["red shoe", "lamp"]))


def test_attributes_stand_beside_the_models_vectors(bert_folder: Path, tmp_path: Path) -> None:
    items = pl.DataFrame(
        {
            "title": ["red shoe", "blue lamp", "red shoe", None, "soft"],
            "brand": ["Acme", "Acme", "Other", None, None],
            "categories": [["Home", "Light"], ["Light", "Home"], ["Home"], [], None],
        }
    )
    plain, known = (encoder(bert_folder, tmp_path, attributes=size) for size in (0, 64))
    assert known.dimension == plain.dimension + 128
    assert known.fingerprint != plain.fingerprint
    raw, bare = known.encode(items), plain.encode(items)
    assert raw.mask.tolist() == bare.mask.tolist() == [True, True, True, False, True]
    text, brand, categories = np.split(raw.vectors, [plain.dimension, plain.dimension + 64], axis=1)
    lengths = np.linalg.norm(bare.vectors, axis=1, keepdims=True)
    np.testing.assert_allclose(text * lengths, bare.vectors, atol=1e-5)
    np.testing.assert_allclose(brand[0], brand[1])
    np.testing.assert_allclose(categories[0], categories[1], atol=1e-6)
    assert brand[0] @ brand[2] < 0.9
    np.testing.assert_allclose(np.linalg.norm(brand, axis=1), [1, 1, 1, 0, 0], atol=1e-5)
    # A single new item gets the vector it has in any table.
    np.testing.assert_allclose(known.encode(items[1:2]).vectors[0], raw.vectors[1], atol=1e-5)


def test_attributes_are_put_there_block_by_block(bert_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    items = pl.DataFrame({"title": [f"red shoe {row}" for row in range(7)], "brand": ["Acme", None] * 3 + ["Other"]})
    whole = encoder(bert_folder, tmp_path, attributes=8).encode(items).vectors
    rows: list[int] = []

    def counted(vectors: Any) -> Any:
        rows.append(vectors.shape[0])
        return normalize(vectors)

    monkeypatch.setattr(text_module, "normalize", counted)
    monkeypatch.setattr(text_module, "ROWS_AT_ONCE", 3, raising=False)
    np.testing.assert_array_equal(encoder(bert_folder, tmp_path, attributes=8).encode(items).vectors, whole)
    assert max(rows) == 3


def test_attributes_are_checked() -> None:
    with pytest.raises(CEMGError, match="attributes = -1"):
        TextConfig(attributes=-1).check()
