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

from cemg_hf import CEMGTokenizer

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
    assert found.catalogue_fingerprint == expected.catalogue_fingerprint
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
