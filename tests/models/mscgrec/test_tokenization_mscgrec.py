"""The vocabulary of several code streams: token ranges, missing codes, and everything else as in CEMG."""

from __future__ import annotations

import pytest
import torch
from stream_samples import HISTORIES, ITEMS, LEVELS, SIZE, STREAMS, stream_codes, stream_tokenizer

from cemg_hf import CEMGTokenizer
from cemg_hf.models.mscgrec import MSCGRecTokenizer

TOKENIZER = stream_tokenizer()


def test_a_history_shows_every_stream_in_tokens_of_its_own():
    tokens = TOKENIZER.history_tokens.view(ITEMS, len(STREAMS), LEVELS)
    for item in range(ITEMS):
        for stream in range(len(STREAMS)):
            if not TOKENIZER.stream_mask[item, stream]:
                assert tokens[item, stream].tolist() == [int(TOKENIZER.missing_tokens[stream])] * LEVELS
                continue
            for level in range(LEVELS):
                code = int(TOKENIZER.stream_codes[item, stream, level])
                text = TOKENIZER.convert_ids_to_tokens(int(tokens[item, stream, level]))
                assert text == f"<{chr(97 + stream * LEVELS + level)}_{code}>"
    assert int(tokens.max()) < len(TOKENIZER)
    assert set(tokens.unique().tolist()).isdisjoint({0, 1, TOKENIZER.base_vocab_size})


def test_texts_of_all_tokens_come_back_as_the_same_tokens():
    ids = list(range(TOKENIZER.first_code_id, len(TOKENIZER)))
    texts = TOKENIZER.convert_ids_to_tokens(ids)
    assert len(set(texts)) == len(ids)
    assert TOKENIZER.convert_tokens_to_ids(TOKENIZER.tokenize("".join(texts))) == ids
    assert texts[-3:] == ["<no_collaborative>", "<no_text>", "<no_image>"]


def test_to_everything_but_a_history_it_is_the_tokenizer_of_the_first_stream():
    plain = CEMGTokenizer(
        item_ids=TOKENIZER.item_ids, item_codes=TOKENIZER.stream_codes[:, 0], num_levels=LEVELS, codebook_size=SIZE, max_history=5
    )
    assert torch.equal(plain.item_tokens, TOKENIZER.item_tokens)
    assert plain.first_code_id == TOKENIZER.first_code_id
    assert torch.equal(plain.trie.leaf_items, TOKENIZER.trie.leaf_items)
    assert TOKENIZER.decode_items(TOKENIZER.item_tokens[3]) == ["item3"]
    shown = TOKENIZER(["item1", "item3", "item2"])["input_ids"]  # item3 shows no code of the first stream
    assert TOKENIZER.decode_items(shown) == ["item1", "item2"]


def test_another_stream_first_is_the_same_catalogue_in_another_order():
    turned = TOKENIZER.with_layout(base_vocab_size=2, max_history=5, decoded="image")
    assert turned.streams == ["image", "collaborative", "text"]
    assert torch.equal(turned.item_codes, TOKENIZER.stream_codes[:, 2])
    assert torch.equal(turned.stream_mask, TOKENIZER.stream_mask[:, [2, 0, 1]])
    assert turned.trained_fingerprint != TOKENIZER.trained_fingerprint
    with pytest.raises(ValueError, match="there is no stream 'sound'; choose one of collaborative, text, image"):
        TOKENIZER.with_layout(base_vocab_size=2, max_history=5, decoded="sound")


def test_histories_without_a_stream():
    without = TOKENIZER.history_tokens_without(["image"]).view(ITEMS, 3, LEVELS)
    shown = TOKENIZER.history_tokens.view(ITEMS, 3, LEVELS)
    assert torch.equal(without[:, :2], shown[:, :2])
    assert (without[:, 2] == TOKENIZER.missing_tokens[2]).all()
    assert torch.equal(TOKENIZER.history_tokens_without([]), TOKENIZER.history_tokens)
    with pytest.raises(ValueError, match="there is no stream 'sound' to leave out"):
        TOKENIZER.history_tokens_without(["sound"])
    with pytest.raises(ValueError, match="histories need one"):
        TOKENIZER.history_tokens_without(STREAMS)
    with pytest.raises(ValueError, match="got the string 'text'"):
        TOKENIZER.history_tokens_without("text")


def test_it_is_saved_and_loaded_whole(tmp_path):
    TOKENIZER.save_pretrained(tmp_path)
    loaded = MSCGRecTokenizer.from_pretrained(tmp_path)
    assert loaded.streams == STREAMS
    for name in ("item_codes", "item_tokens", "history_tokens", "stream_codes", "stream_mask", "new_items"):
        assert torch.equal(getattr(loaded, name), getattr(TOKENIZER, name)), name
    assert (loaded.item_ids, loaded.trained_fingerprint) == (TOKENIZER.item_ids, TOKENIZER.trained_fingerprint)
    assert loaded(HISTORIES, padding=True)["input_ids"] == TOKENIZER(HISTORIES, padding=True)["input_ids"]
    assert loaded.model_max_length == 1 + 5 * 3 * LEVELS


def test_the_fingerprint_is_of_all_that_histories_show():
    codes, mask = stream_codes(), TOKENIZER.stream_mask
    hidden, shown = codes.clone(), codes.clone()
    hidden[4, 2, 1] = (hidden[4, 2, 1] + 1) % SIZE  # item 4 has no image
    shown[1, 2, 1] = (shown[1, 2, 1] + 1) % SIZE
    prints = [
        MSCGRecTokenizer(
            item_ids=TOKENIZER.item_ids, stream_codes=given, stream_mask=mask, streams=STREAMS, num_levels=LEVELS, codebook_size=SIZE
        ).catalogue_fingerprint
        for given in (codes, hidden, shown)
    ]
    assert prints[0] == prints[1] != prints[2]


def test_items_may_go_and_none_may_come():
    tokenizer = stream_tokenizer()
    tokenizer.remove_items(["item0", "item7"])
    kept = torch.tensor([index for index in range(ITEMS) if index not in (0, 7)])
    assert torch.equal(tokenizer.history_tokens, TOKENIZER.history_tokens[kept])
    assert torch.equal(tokenizer.stream_mask, TOKENIZER.stream_mask[kept])
    assert tokenizer.trained_fingerprint == TOKENIZER.trained_fingerprint != tokenizer.catalogue_fingerprint
    with pytest.raises(ValueError, match="takes no new items"):
        tokenizer.add_items(["new"], {"text": torch.zeros(1, 3)})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"stream_codes": stream_codes()[:, :2]}, r"stream_codes must be 40 × 3 × 3 \(items × streams × levels\), got \(40, 2, 3\)"),
        ({"stream_codes": stream_codes()[..., :2]}, r"got \(40, 3, 2\)"),
        ({"stream_codes": [stream_codes()[:, 0], stream_codes()[:30, 1]]}, r"one tensor .* got \(40, 3\), \(30, 3\); .* stack them"),
        ({"stream_codes": stream_codes() + 1}, "stream_codes must lie in 0 … 5"),
        ({"stream_mask": torch.ones(ITEMS, 2, dtype=torch.bool)}, "stream_mask must be 40 × 3 booleans"),
        ({"stream_mask": torch.ones(ITEMS, 3)}, "stream_mask must be"),
        ({"streams": ["a", "a", "b"]}, "different names"),
        ({"stream_codes": stream_codes()[:1].expand(ITEMS, -1, -1)}, "share one code"),
        ({"item_ids": None}, "needs a catalogue"),
    ],
)
def test_bad_input(wrong, message):
    given = {"item_ids": [f"item{index}" for index in range(ITEMS)], "stream_codes": stream_codes(), "streams": STREAMS}
    with pytest.raises(ValueError, match=message):
        MSCGRecTokenizer(**given | {"num_levels": LEVELS, "codebook_size": SIZE} | wrong)
