"""The item tokenizer: histories to tokens and back, bit-for-bit saving, refusals."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from generator_samples import CODEBOOK_SIZE, NUM_LEVELS, item_tokenizer, random_codes, rqvae_parts
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from cemg_hf import CEMGRQVAE, CEMGRQVAEConfig, CEMGTokenizer
from cemg_hf.models.cemg import tokenization_cemg

TOKENIZER = item_tokenizer()
ITEMS = st.lists(st.sampled_from(TOKENIZER.item_ids), max_size=9)


@settings(max_examples=40, deadline=None)
@given(ITEMS)
def test_decode_items_inverts_the_tokenizer_up_to_truncation(history):
    ids = TOKENIZER(history)["input_ids"]
    assert ids[0] == TOKENIZER.bos_token_id
    assert len(ids) == 1 + NUM_LEVELS * min(len(history), TOKENIZER.max_history)
    assert TOKENIZER.decode_items(ids) == history[-TOKENIZER.max_history :]
    assert TOKENIZER.decode_items([*ids, 1, 0, 0]) == history[-TOKENIZER.max_history :]


@settings(max_examples=25, deadline=None)
@given(st.lists(ITEMS, min_size=1, max_size=4), st.sampled_from(["left", "right"]))
def test_a_batch_is_its_histories_padded_on_one_side(histories, side):
    batch = TOKENIZER(histories, padding=True, padding_side=side, return_tensors="pt")
    for history, ids, mask in zip(histories, batch["input_ids"], batch["attention_mask"], strict=True):
        alone = TOKENIZER(history)
        assert ids[mask.bool()].tolist() == alone["input_ids"]
        assert (ids[~mask.bool()] == TOKENIZER.pad_token_id).all()
        padding = len(ids) - len(alone["input_ids"])
        assert mask.tolist() == (
            [0] * padding + [1] * (len(ids) - padding) if side == "left" else [1] * (len(ids) - padding) + [0] * padding
        )
    assert TOKENIZER(histories)["input_ids"] == [TOKENIZER(history)["input_ids"] for history in histories]


def test_one_history_stays_flat_and_becomes_a_batch_of_one_as_tensors():
    flat = TOKENIZER(["item1"], padding="max_length", max_length=9)
    assert flat["input_ids"] == [*TOKENIZER(["item1"])["input_ids"], 0, 0, 0, 0, 0]
    assert flat["attention_mask"] == [1] * 4 + [0] * 5
    assert TOKENIZER(["item1"], return_tensors="pt")["input_ids"].shape == (1, 4)
    assert TOKENIZER([])["input_ids"] == [TOKENIZER.bos_token_id]
    assert TOKENIZER([], add_special_tokens=False)["input_ids"] == []
    assert TOKENIZER(["item1"], add_special_tokens=False)["input_ids"] == TOKENIZER(["item1"])["input_ids"][1:]


def test_histories_may_come_as_numpy():
    history = ["item4", "item2"]
    assert TOKENIZER(np.array(history))["input_ids"] == TOKENIZER(history)["input_ids"]
    assert TOKENIZER([np.array(history), history])["input_ids"] == [TOKENIZER(history)["input_ids"]] * 2


def test_tokens_are_the_raw_codes_in_letters():
    codes = TOKENIZER.item_codes[7].tolist()
    text = "<s>" + "".join(f"<{letter}_{code}>" for letter, code in zip("abc", codes, strict=True))
    assert TOKENIZER.decode(TOKENIZER(["item7"])["input_ids"]) == text
    assert TOKENIZER.convert_tokens_to_ids(TOKENIZER.tokenize(text[3:])) == TOKENIZER.item_tokens[7].tolist()
    vocabulary = TOKENIZER.get_vocab()
    assert len(vocabulary) == len(set(vocabulary.values())) == len(TOKENIZER) == 3 + NUM_LEVELS * CODEBOOK_SIZE
    assert sorted(vocabulary.values()) == list(range(len(TOKENIZER)))


@pytest.mark.parametrize(
    ("history", "message"),
    [
        ("item1", r"got the string 'item1'; write \['item1'\]"),
        (["item1", ["item2"]], "mixture"),
        ([3], "item ids are strings, got 3"),
        (["item1", "nothing", "none"], "'nothing' and 1 more is not among the 60 items"),
        ([["item1"], ["nothing"]], "'nothing' is not among"),
    ],
)
def test_bad_histories_are_refused(history, message):
    with pytest.raises(ValueError, match=message):
        TOKENIZER(history)


def test_unknown_items_can_be_skipped():
    assert TOKENIZER(["nothing", "item1", "none"], on_unknown="skip")["input_ids"] == TOKENIZER(["item1"])["input_ids"]
    with pytest.raises(ValueError, match="on_unknown"):
        TOKENIZER(["item1"], on_unknown="ignore")


def test_ids_that_are_no_items_are_refused():
    taken = {tuple(codes) for codes in TOKENIZER.item_codes.tolist()}
    free = next(codes for codes in np.ndindex(*[CODEBOOK_SIZE] * NUM_LEVELS) if codes not in taken)
    text = "".join(f"<{letter}_{code}>" for letter, code in zip("abc", free, strict=True))
    with pytest.raises(ValueError, match=f"{text} is the code of no item"):
        TOKENIZER.decode_items(TOKENIZER.convert_tokens_to_ids(TOKENIZER.tokenize(text)))
    with pytest.raises(ValueError, match="not whole items"):
        TOKENIZER.decode_items(TOKENIZER(["item1"])["input_ids"][:-1])
    with pytest.raises(ValueError, match="of no item"):
        TOKENIZER.decode_items(TOKENIZER(["item1"])["input_ids"][:0:-1])  # the right tokens at the wrong levels
    with pytest.raises(ValueError, match="token id 999"):
        TOKENIZER.decode([999])
    with pytest.raises(ValueError, match="'<a_8>' is no token"):
        TOKENIZER.convert_tokens_to_ids("<a_8>")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"item_ids": ["a", "a"]}, "1 of 2 are repeated"),
        ({"item_ids": ["a", 5]}, "got 5"),
        ({"item_ids": ["a"]}, "must be 1 × 3"),
        ({"item_codes": torch.tensor([[0, 0, 0], [0, 0, 0]])}, "items 0 and 1 share one code"),
        ({"item_codes": torch.tensor([[0, 0, 0], [0, 0, 8]])}, "must lie in 0 … 7"),
        ({"item_codes": None}, "got None"),
        ({"max_history": 0}, "max_history"),
        ({"encoders": {"text": {}}}, "give rqvae too"),
        ({"new_items": torch.tensor([True])}, "must be 2 booleans"),
        ({"format_version": 2}, "format 2, this version of cemg_hf reads format 1"),
    ],
)
def test_catalogues_that_do_not_fit_are_refused(changes, message):
    given = {"item_ids": ["a", "b"], "item_codes": random_codes(2), "num_levels": NUM_LEVELS, "codebook_size": CODEBOOK_SIZE}
    with pytest.raises(ValueError, match=message):
        CEMGTokenizer(**(given | changes))
    with pytest.raises(ValueError, match="needs a catalogue"):
        CEMGTokenizer()


def assert_same_tokenizer(found: CEMGTokenizer, expected: CEMGTokenizer) -> None:
    assert type(found) is CEMGTokenizer
    assert found.item_ids == expected.item_ids
    assert torch.equal(found.item_codes, expected.item_codes)
    assert torch.equal(found.item_tokens, expected.item_tokens)
    assert found.geometry() == expected.geometry()
    assert torch.equal(found.new_items, expected.new_items)
    assert found.catalogue_fingerprint == expected.catalogue_fingerprint
    assert found.trained_fingerprint == expected.trained_fingerprint
    assert found.get_vocab() == expected.get_vocab()
    assert found.encoders == expected.encoders
    assert (found.rqvae is None) == (expected.rqvae is None)
    if expected.rqvae is not None:
        assert found.rqvae.config == expected.rqvae.config
        states = found.rqvae.state_dict(), expected.rqvae.state_dict()
        assert states[0].keys() == states[1].keys()
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[1])
    assert found.projections.keys() == expected.projections.keys()
    for name, parts in expected.projections.items():
        assert found.projections[name].keys() == parts.keys()
        assert all(found.projections[name][part].dtype == value.dtype for part, value in parts.items())
        assert all(torch.equal(found.projections[name][part], value) for part, value in parts.items())


@pytest.mark.parametrize("with_rqvae", [True, False])
def test_saving_and_loading_is_bit_for_bit(tmp_path, with_rqvae):
    tokenizer = item_tokenizer(**(rqvae_parts() if with_rqvae else {}), base_vocab_size=11, padding_side="left")
    tokenizer.save_pretrained(tmp_path)
    for loaded in (CEMGTokenizer.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)):
        assert_same_tokenizer(loaded, tokenizer)
        assert loaded.padding_side == "left"
        assert loaded(["item3", "item5"])["input_ids"] == tokenizer(["item3", "item5"])["input_ids"]
    files = {path.name for path in tmp_path.iterdir()} - {"tokenizer_config.json"}
    data = {name for name in files if not name.endswith(".py")}
    # A Hub client fetches the files listed there and no others.
    assert data == set(CEMGTokenizer.vocab_files_names.values()) if with_rqvae else data < set(CEMGTokenizer.vocab_files_names.values())
    again = tmp_path / "again"
    CEMGTokenizer.from_pretrained(tmp_path).save_pretrained(again)
    assert all((again / name).read_bytes() == (tmp_path / name).read_bytes() for name in data)
    settings = [json.loads((folder / "tokenizer_config.json").read_text()) for folder in (tmp_path, again)]
    assert settings[0] == settings[1]  # nothing in it of how the tokenizer was loaded


def test_saving_over_an_older_tokenizer_leaves_nothing_of_it(tmp_path):
    item_tokenizer(**rqvae_parts()).save_pretrained(tmp_path)
    item_tokenizer(seed=1).save_pretrained(tmp_path)
    assert CEMGTokenizer.from_pretrained(tmp_path).rqvae is None


def test_files_that_do_not_belong_together_are_refused(tmp_path):
    item_tokenizer().save_pretrained(tmp_path)
    ids = tmp_path / CEMGTokenizer.vocab_files_names["item_ids_file"]
    ids.write_text(json.dumps(json.loads(ids.read_text())[:-1]))
    with pytest.raises(ValueError, match="must be 59 × 3"):
        CEMGTokenizer.from_pretrained(tmp_path)


def test_fingerprint_tells_catalogues_apart():
    same, other_codes, fewer = item_tokenizer(), item_tokenizer(seed=1), item_tokenizer(59)
    assert same.catalogue_fingerprint == TOKENIZER.catalogue_fingerprint
    assert len({tokenizer.catalogue_fingerprint for tokenizer in (same, other_codes, fewer)}) == 3


def test_another_layout_keeps_catalogue_and_network():
    tokenizer = item_tokenizer(**rqvae_parts(), padding_side="left")
    relaid = tokenizer.with_layout(base_vocab_size=100, max_history=2)
    assert relaid.catalogue_fingerprint == tokenizer.catalogue_fingerprint
    assert relaid.rqvae is tokenizer.rqvae
    assert relaid.encoders == tokenizer.encoders
    assert relaid.padding_side == "left"
    assert torch.equal(relaid.item_tokens, tokenizer.item_tokens + 98)
    assert relaid(["item1", "item2", "item3"])["input_ids"] == [100, *relaid.item_tokens[[2, 3]].flatten().tolist()]


def test_every_tokenizer_file_is_text_or_safetensors(tmp_path):
    item_tokenizer(**rqvae_parts()).save_pretrained(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} <= {".json", ".safetensors", ".py"}


# ---- items that come and go -------------------------------------------------------------------------------------------------------

RAW = {"text": 9, "collaborative": 5}


def open_tokenizer(num_items: int = 60, content_head_dim: int = 4, **settings) -> CEMGTokenizer:
    """A tokenizer that can code new items: an RQ-VAE with a content head, and projections from raw vectors."""
    torch.manual_seed(3)
    rqvae = CEMGRQVAE(
        CEMGRQVAEConfig(
            modality_dims={"text": 6, "collaborative": 4},
            dimension=4,
            num_levels=NUM_LEVELS,
            codebook_size=CODEBOOK_SIZE,
            hidden_dims=[5],
            latent_dim=3,
            content_head_dim=content_head_dim,
        )
    ).eval()
    projections = {
        name: {"mean": torch.randn(raw), "components": torch.randn(rqvae.config.modality_dims[name], raw), "scale": torch.tensor(0.4)}
        for name, raw in RAW.items()
    }
    return item_tokenizer(num_items, rqvae=rqvae, projections=projections, encoders={"text": {"name": "tf-idf"}}, **settings)


def raw_vectors(count: int, *names: str, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(count, RAW[name], generator=generator) for name in names or ("text",)}


def ids(count: int) -> list[str]:
    return [f"new{index}" for index in range(count)]


@torch.no_grad()
def nearest_codes(tokenizer: CEMGTokenizer, vectors: dict[str, torch.Tensor], predict: bool) -> torch.Tensor:
    features = {}
    for name, values in vectors.items():
        parts = tokenizer.projections[name]
        features[name] = torch.stack([parts["scale"] * parts["components"] @ (row - parts["mean"]) for row in values])
    masks = {name: torch.ones(len(values), dtype=torch.bool) for name, values in features.items()}
    if predict:
        features, masks = tokenizer.rqvae.fill_collaborative(features, masks)
    return tokenizer.rqvae.quantise(tokenizer.rqvae.encode(features, masks)).codes


@pytest.mark.parametrize("collaborative", ["predicted", "masked"])
@pytest.mark.parametrize("names", [("text",), ("text", "collaborative"), ("collaborative",)])
def test_new_items_get_free_codes_near_their_own_and_no_code_changes(names, collaborative):
    tokenizer = open_tokenizer()
    before = tokenizer.item_codes.clone()
    vectors = raw_vectors(40, *names)
    nearest = nearest_codes(tokenizer, vectors, predict=collaborative == "predicted")
    added = tokenizer.add_items(ids(40), vectors, collaborative=collaborative)
    assert tokenizer.item_ids == [*TOKENIZER.item_ids, *ids(40)]
    assert torch.equal(tokenizer.item_codes, torch.cat([before, added.item_codes]))
    assert len(tokenizer.item_codes.unique(dim=0)) == 100
    assert added.moved == int((added.item_codes != nearest).any(dim=1).sum())
    assert 0 < added.moved < 40
    assert 0 < added.collision_rate < 1
    # Where nothing clashes under a prefix, all its new items are where they belong.
    everyone = torch.cat([before, nearest])
    clashing = torch.tensor([(everyone == code).all(1).sum() > 1 for code in nearest])
    calm = torch.tensor([not bool((clashing & (nearest[:, :-1] == code[:-1]).all(1)).any()) for code in nearest])
    if added.spilled == 0:
        assert bool(calm.any())
        assert torch.equal(added.item_codes[calm], nearest[calm])
    assert tokenizer.new_items.tolist() == [False] * 60 + [True] * 40
    assert tokenizer.decode_items(tokenizer(["new3", "item5"])["input_ids"]) == ["new3", "item5"]
    assert tokenizer.trie.num_items == 100


def test_the_content_head_has_a_say_only_when_asked():
    predicted, masked, headless = open_tokenizer(), open_tokenizer(), open_tokenizer(content_head_dim=0)
    codes = [
        tokenizer.add_items(ids(30), raw_vectors(30), collaborative=how).item_codes
        for tokenizer, how in ((predicted, "predicted"), (masked, "masked"), (headless, "predicted"))
    ]
    assert not torch.equal(codes[0], codes[1])
    assert torch.equal(headless.item_codes[60:], codes[2])


def test_arrays_blocks_and_training_mode_give_the_same_codes(monkeypatch):
    tokenizers = [open_tokenizer() for _ in range(3)]
    vectors = raw_vectors(25, "text", "collaborative")
    expected = tokenizers[0].add_items(ids(25), vectors)
    arrays = {name: values.numpy() for name, values in vectors.items()}
    for values in arrays.values():
        values.flags.writeable = False
    assert torch.equal(tokenizers[1].add_items(ids(25), arrays).item_codes, expected.item_codes)
    monkeypatch.setattr(tokenization_cemg, "ENCODED_AT_ONCE", 4)
    tokenizers[2].rqvae.train()
    assert torch.equal(tokenizers[2].add_items(ids(25), vectors).item_codes, expected.item_codes)
    assert tokenizers[2].rqvae.training
    assert len({tokenizer.catalogue_fingerprint for tokenizer in tokenizers}) == 1


def test_masked_vectors_have_no_influence():
    vectors = raw_vectors(20, "text", "collaborative")
    given = torch.arange(20) % 3 > 0
    masks = {"collaborative": given}
    expected = open_tokenizer().add_items(ids(20), vectors, masks).item_codes
    vectors["collaborative"] = vectors["collaborative"].masked_fill(~given[:, None], torch.nan)
    assert torch.equal(open_tokenizer().add_items(ids(20), vectors, masks).item_codes, expected)
    assert torch.equal(open_tokenizer().add_items(ids(20), vectors, {"collaborative": given.numpy()}).item_codes, expected)


def test_dozens_of_items_with_identical_features_all_get_a_code():
    tokenizer = open_tokenizer()
    vectors = {"text": raw_vectors(1)["text"].expand(200, -1)}
    added = tokenizer.add_items(ids(200), vectors)
    assert len(tokenizer.item_codes.unique(dim=0)) == 260
    assert added.spilled > 0
    assert added.collision_rate == 1.0
    rest = CODEBOOK_SIZE**NUM_LEVELS - 260
    tokenizer.add_items([f"last{index}" for index in range(rest)], raw_vectors(rest))
    assert len(tokenizer.item_codes.unique(dim=0)) == CODEBOOK_SIZE**NUM_LEVELS


BROKEN = raw_vectors(3)["text"].index_fill(0, torch.tensor([1]), torch.nan)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("new0", raw_vectors(1)), r"got the string 'new0'; write \['new0'\]"),
        (([], raw_vectors(0)), "item_ids: empty"),
        (([7, "new1", "new2"], raw_vectors(3)), "got 7"),
        ((["new0", "item3", "item4"], raw_vectors(3)), "'item3' and 1 more exists in the catalogue"),
        ((["new0", "new1", "new0"], raw_vectors(3)), "'new0' is given twice among the 3"),
        ((ids(3), {}), "vectors: empty"),
        ((ids(3), {"image": torch.zeros(3, 4)}), r"modality 'image' is not one the tokenizer was trained on \(text, collaborative\)"),
        ((ids(3), raw_vectors(3), {"picture": [True] * 3}), "masks: modality 'picture'"),
        ((ids(3), {"text": torch.zeros(3, 6)}), r"vectors\['text'\]: dimension 6, expected 9; encode with .* tf-idf"),
        ((ids(3), {"text": torch.zeros(3)}), r"dimension shape \(3,\), expected 9"),
        ((ids(3), raw_vectors(2)), r"vectors\['text'\]: 2 rows for 3 item ids"),
        ((ids(3), raw_vectors(3), {"text": [True]}), r"masks\['text'\]: 1 rows for 3 item ids"),
        ((ids(3), raw_vectors(3), {"text": [1, 0, 1]}), "expected one boolean per item"),
        ((ids(3), {"text": BROKEN}), "item 'new1' has NaN"),
        ((ids(3), raw_vectors(3), {"text": [True, True, False]}), "item 'new2' has no modality at all"),
        ((ids(500), raw_vectors(500)), r"560 items, 500 of them new, do not fit into 8\^3 codes"),
    ],
)
def test_new_items_that_do_not_fit_are_refused_and_nothing_changes(arguments, message):
    tokenizer = open_tokenizer()
    before = tokenizer._catalogue
    with pytest.raises(ValueError, match=message):
        tokenizer.add_items(*arguments)
    assert tokenizer._catalogue is before
    assert tokenizer.item_ids == TOKENIZER.item_ids


def test_adding_needs_a_network_and_a_known_way_to_fill_in():
    with pytest.raises(ValueError, match="no RQ-VAE"):
        item_tokenizer().add_items(ids(1), raw_vectors(1))
    with pytest.raises(ValueError, match="'predicted' or 'masked', got 'guess'"):
        open_tokenizer().add_items(ids(1), raw_vectors(1), collaborative="guess")


def test_removed_items_are_unknown_and_others_keep_their_codes():
    tokenizer = open_tokenizer()
    added = tokenizer.add_items(ids(5), raw_vectors(5))
    codes = dict(zip(tokenizer.item_ids, tokenizer.item_codes.tolist(), strict=True))
    tokenizer.remove_items(["item7", "new1", "item7"])
    assert tokenizer.item_ids == [item_id for item_id in codes if item_id not in ("item7", "new1")]
    assert all(codes[item_id] == code for item_id, code in zip(tokenizer.item_ids, tokenizer.item_codes.tolist(), strict=True))
    assert tokenizer.new_items.tolist() == [item_id.startswith("new") for item_id in tokenizer.item_ids]
    with pytest.raises(ValueError, match="'item7' is not among the 63"):
        tokenizer(["item7"])
    again = tokenizer.add_items(["back"], {"text": raw_vectors(5)["text"][1:2]})
    assert torch.equal(again.item_codes[0], added.item_codes[1])
    before = tokenizer._catalogue
    for gone, message in (
        (["item1", "nothing"], "'nothing' is not among"),
        (tokenizer.item_ids, "all 64 items of the catalogue would go"),
        ("item1", r"write \['item1'\]"),
    ):
        with pytest.raises(ValueError, match=message):
            tokenizer.remove_items(gone)
    assert tokenizer._catalogue is before


def test_the_tokenizer_remembers_what_it_was_trained_on(tmp_path):
    tokenizer = open_tokenizer()
    trained = tokenizer.catalogue_fingerprint
    assert tokenizer.trained_fingerprint == trained == TOKENIZER.catalogue_fingerprint
    tokenizer.add_items(ids(4), raw_vectors(4))
    tokenizer.remove_items(["item0", "new2"])
    assert tokenizer.trained_fingerprint == trained != tokenizer.catalogue_fingerprint
    relaid = tokenizer.with_layout(base_vocab_size=100, max_history=2)
    # A layout is for a model about to be trained, on the catalogue as it is now.
    assert relaid.trained_fingerprint == relaid.catalogue_fingerprint == tokenizer.catalogue_fingerprint
    assert not relaid.new_items.any()
    tokenizer.save_pretrained(tmp_path)
    for loaded in (CEMGTokenizer.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)):
        assert_same_tokenizer(loaded, tokenizer)
    more = [other.add_items(["x", "y"], raw_vectors(2, seed=9)).item_codes for other in (loaded, tokenizer)]
    assert torch.equal(*more)
    tokenizer.remove_items(["x", "y", "new0", "new1", "new3"])
    restored = tokenizer.add_items(["item0"], raw_vectors(1))
    assert len(restored.item_codes) == 1
    assert tokenizer.item_ids == [*TOKENIZER.item_ids[1:], "item0"]


def test_folders_written_before_items_could_be_added_still_load(tmp_path):
    item_tokenizer().save_pretrained(tmp_path)
    config = tmp_path / "tokenizer_config.json"
    content = json.loads(config.read_text())
    assert content.pop("format_version") == 1
    assert content.pop("trained_fingerprint") == TOKENIZER.catalogue_fingerprint
    assert content.pop("has_rqvae") is False
    config.write_text(json.dumps(content))
    tokenization_cemg.save_file({"item_codes": TOKENIZER.item_codes.int()}, tmp_path / "item_codes.safetensors")
    assert_same_tokenizer(CEMGTokenizer.from_pretrained(tmp_path), TOKENIZER)


@pytest.mark.parametrize(("name", "key"), [("tokenizer_config.json", "format_version"), ("rqvae_config.json", "format")])
def test_folders_of_a_newer_version_are_refused(tmp_path, name, key):
    open_tokenizer().save_pretrained(tmp_path)
    content = json.loads((tmp_path / name).read_text())
    (tmp_path / name).write_text(json.dumps(content | {key: 2, "surprise": 1}))
    with pytest.raises(ValueError, match="format 2, this version of cemg_hf reads format 1; update cemg_hf"):
        CEMGTokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize("missing", [["rqvae.safetensors"], ["rqvae_config.json"], ["rqvae.safetensors", "rqvae_config.json"]])
def test_an_rqvae_that_did_not_arrive_is_not_passed_over(tmp_path, missing):
    open_tokenizer().save_pretrained(tmp_path)
    for name in missing:
        (tmp_path / name).unlink()
    with pytest.raises(ValueError, match=r"its files \(rqvae_config\.json, rqvae\.safetensors\) did not all arrive"):
        CEMGTokenizer.from_pretrained(tmp_path)


def test_broken_files_are_named(tmp_path):
    item_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "item_codes.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match=r"item_codes.safetensors: not a safetensors file"):
        CEMGTokenizer.from_pretrained(tmp_path)
    tokenization_cemg.save_file({"codes": TOKENIZER.item_codes.int()}, tmp_path / "item_codes.safetensors")
    with pytest.raises(ValueError, match=r"item_codes.safetensors: holds no tensor item_codes"):
        CEMGTokenizer.from_pretrained(tmp_path)


def test_a_save_that_fails_leaves_the_folder_as_it_was(tmp_path, monkeypatch):
    tokenizer = open_tokenizer()
    tokenizer.save_vocabulary(str(tmp_path))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    tokenizer.add_items(ids(3), raw_vectors(3))
    save = tokenization_cemg.save_file

    def failing(tensors, path, **options):
        if "codebooks" in tensors:
            raise OSError("no space left on device")
        save(tensors, path, **options)

    monkeypatch.setattr(tokenization_cemg, "save_file", failing)
    with pytest.raises(OSError, match="no space"):
        tokenizer.save_vocabulary(str(tmp_path))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
