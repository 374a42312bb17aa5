"""The vocabulary of several code streams: token ranges, missing codes, and everything else as in CEMG."""

from __future__ import annotations

import pytest
import torch
from stream_samples import (
    HISTORIES,
    ITEMS,
    LEVELS,
    SIZE,
    STREAMS,
    growing_stream_tokenizer,
    raw_vectors,
    stream_codes,
    stream_quantisers,
    stream_tokenizer,
)

from cemg_hf import CEMGTokenizer
from cemg_hf.models.mscgrec import MSCGRecTokenizer

TOKENIZER = stream_tokenizer()
CATALOGUE = ("item_codes", "item_tokens", "history_tokens", "stream_codes", "stream_mask")


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


def test_items_may_go():
    tokenizer = stream_tokenizer()
    tokenizer.remove_items(["item0", "item7"])
    kept = torch.tensor([index for index in range(ITEMS) if index not in (0, 7)])
    assert torch.equal(tokenizer.history_tokens, TOKENIZER.history_tokens[kept])
    assert torch.equal(tokenizer.stream_mask, TOKENIZER.stream_mask[kept])
    assert tokenizer.trained_fingerprint == TOKENIZER.trained_fingerprint != tokenizer.catalogue_fingerprint


# ---- new items ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("written", STREAMS)
def test_new_items_get_free_codes_in_every_stream_and_change_nothing_else(written):
    tokenizer = growing_stream_tokenizer().with_layout(base_vocab_size=2, max_history=5, decoded=written)
    before = {name: getattr(tokenizer, name) for name in CATALOGUE}
    ids, vectors = [f"new{number}" for number in range(6)], raw_vectors(6)
    masks = {"image" if written != "image" else "text": torch.tensor([True, True, False, True, False, True])}
    added = tokenizer.add_items(ids, vectors, masks)
    assert tokenizer.item_ids == [f"item{index}" for index in range(ITEMS)] + ids
    for name, values in before.items():
        assert torch.equal(getattr(tokenizer, name)[:ITEMS], values), name
    assert torch.equal(tokenizer.item_codes[ITEMS:], added.item_codes)
    for stream in range(3):
        assert len(tokenizer.stream_codes[:, stream].unique(dim=0)) == ITEMS + 6
    assert tokenizer.new_items.tolist() == [False] * ITEMS + [True] * 6
    assert tokenizer.trained_fingerprint != tokenizer.catalogue_fingerprint
    shown = dict(zip(tokenizer.streams, tokenizer.stream_mask[ITEMS:].T, strict=True))
    assert not shown["collaborative"].any()  # predicted to be written, and missing in histories
    for name in ("text", "image"):
        assert torch.equal(shown[name], masks.get(name, torch.ones(6, dtype=torch.bool)))
    missing = tokenizer.missing_tokens[:, None].expand(3, LEVELS)
    for tokens, mask in zip(tokenizer.history_tokens[ITEMS:].view(6, 3, LEVELS), tokenizer.stream_mask[ITEMS:], strict=True):
        assert torch.equal((tokens == missing).all(dim=1), ~mask)
    for item in range(ITEMS, ITEMS + 6):
        assert tokenizer.decode_items(tokenizer.item_tokens[item]) == [tokenizer.item_ids[item]]


def test_a_new_item_comes_to_the_nearest_code_of_each_stream_where_that_is_free():
    tokenizer = growing_stream_tokenizer()
    vectors = raw_vectors(3, ("collaborative", "text", "image"))
    projection = tokenizer.projections["text"]
    inputs = vectors | {"text": projection["scale"] * ((vectors["text"] - projection["mean"]) @ projection["components"].T)}
    given = {name: torch.ones(3, dtype=torch.bool) for name in vectors}
    nearest = tokenizer.quantisers.code(inputs, given, predict=False)
    taken = {name: {tuple(row) for row in tokenizer.stream_codes[:, stream].tolist()} for stream, name in enumerate(STREAMS)}
    added = tokenizer.add_items(["a", "b", "c"], vectors)
    free = 0
    for stream, name in enumerate(STREAMS):
        rows = [tuple(row) for row in nearest[name].codes.tolist()]
        for found, row in zip(tokenizer.stream_codes[ITEMS:, stream].tolist(), rows, strict=True):
            if row not in taken[name] and rows.count(row) == 1:
                free += 1
                assert tuple(found) == row
    assert free > 2
    assert tokenizer.stream_mask[ITEMS:].all()
    assert added.moved == int((added.item_codes != nearest["collaborative"].codes).any(dim=1).sum())


def test_codes_that_the_mask_hides_may_be_anything_when_items_come():
    codes, mask = stream_codes(), torch.ones(ITEMS, 3, dtype=torch.bool)
    mask[:5, 1], mask[5:9, 2] = False, False
    codes[:5, 1], codes[5:9, 2] = -1, codes[0, 2]
    tokenizer = growing_stream_tokenizer().with_layout(base_vocab_size=2, max_history=5)
    tokenizer = MSCGRecTokenizer(
        item_ids=tokenizer.item_ids,
        stream_codes=codes,
        stream_mask=mask,
        streams=STREAMS,
        num_levels=LEVELS,
        codebook_size=SIZE,
        quantisers=tokenizer.quantisers,
        projections=tokenizer.projections,
    )
    tokenizer.add_items(["a", "b", "c"], raw_vectors(3))
    assert torch.equal(tokenizer.stream_codes[:ITEMS], codes)
    for stream in (1, 2):
        shown = tokenizer.stream_codes[tokenizer.stream_mask[:, stream], stream]
        assert len(shown.unique(dim=0)) == len(shown)


def test_a_grown_catalogue_survives_saving_another_layout_and_further_changes(tmp_path):
    tokenizer = growing_stream_tokenizer()
    tokenizer.remove_items(["item7"])
    tokenizer.add_items(["item7", "new"], raw_vectors(2))  # one comes back with codes of its own
    tokenizer.save_pretrained(tmp_path)
    loaded = MSCGRecTokenizer.from_pretrained(tmp_path)
    for name in (*CATALOGUE, "new_items"):
        assert torch.equal(getattr(loaded, name), getattr(tokenizer, name)), name
    assert (loaded.item_ids, loaded.trained_fingerprint) == (tokenizer.item_ids, tokenizer.trained_fingerprint)
    assert (loaded.encoders, sorted(loaded.projections)) == ({"text": {"name": "made up"}}, ["text"])
    more = raw_vectors(2, seed=8)
    expected = tokenizer.add_items(["x", "y"], more).item_codes
    assert torch.equal(loaded.add_items(["x", "y"], more).item_codes, expected)
    loaded.remove_items(["x", "item0"])
    assert torch.equal(loaded.stream_codes[-1], tokenizer.stream_codes[-1])
    turned = loaded.with_layout(base_vocab_size=4, max_history=3, decoded="image")
    turned.add_items(["z"], raw_vectors(1, seed=9))
    assert len(turned.item_ids) == len(loaded.item_ids) + 1


def test_networks_that_did_not_arrive_are_missed(tmp_path):
    growing_stream_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "rqvae.safetensors").unlink()
    with pytest.raises(ValueError, match=r"rqvae_config\.json, rqvae\.safetensors\) did not all arrive"):
        MSCGRecTokenizer.from_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)  # one without networks takes their files away
    assert not (tmp_path / "rqvae_config.json").exists()
    assert MSCGRecTokenizer.from_pretrained(tmp_path).quantisers is None


def test_items_that_the_written_stream_cannot_code_are_refused_and_nothing_changes():
    one = torch.tensor([False, True])
    cases = [
        (
            growing_stream_tokenizer(),
            {"collaborative": "masked"},
            {},
            "'a' has nothing for the collaborative codes; give it image or",
        ),
        (growing_stream_tokenizer(head=False), {}, {}, r"no content head .*tokenize.content_head_dim above 0.*streams.decoded"),
        (
            growing_stream_tokenizer(streams=["image", "text"]),
            {},
            {"image": one},
            "'a' has nothing for the image codes; give its image",
        ),
        (growing_stream_tokenizer(), {}, {"text": one, "image": one}, "'a' has no modality at all"),
        (TOKENIZER, {}, {}, "holds no networks to code new items with; run `cemg tokenize`"),
        (growing_stream_tokenizer(), {"collaborative": "guessed"}, {}, "must be 'predicted' or 'masked'"),
    ]
    for tokenizer, options, masks, message in cases:
        before = tokenizer._catalogue
        with pytest.raises(ValueError, match=message):
            tokenizer.add_items(["a", "b"], raw_vectors(2), masks, **options)
        assert tokenizer._catalogue is before
    tokenizer = growing_stream_tokenizer()
    for given, message in (
        ({"sound": torch.zeros(1, 3)}, "modality 'sound'"),
        ({"text": torch.zeros(1, 3)}, "dimension 3, expected 7"),
        ({}, "empty"),
    ):
        with pytest.raises(ValueError, match=message):
            tokenizer.add_items(["a"], given)
    with pytest.raises(ValueError, match="'item3' exists in the catalogue"):
        tokenizer.add_items(["item3"], raw_vectors(1))


def test_which_items_can_be_coded_depends_on_the_stream_that_is_written():
    text, image = torch.tensor([True, False, True, False]), torch.tensor([True, True, False, False])
    masks = {"text": text, "image": image}

    def codable(tokenizer, given=masks, **options):
        return tokenizer.codable(given, **options).tolist()

    assert codable(growing_stream_tokenizer()) == [True, True, True, False]
    assert codable(growing_stream_tokenizer(streams=["image", "text"])) == image.tolist()
    own = {"collaborative": ~text} | masks
    assert codable(growing_stream_tokenizer(), own, collaborative="masked") == (~text).tolist()
    for tokenizer, options in ((growing_stream_tokenizer(head=False), {}), (growing_stream_tokenizer(), {"collaborative": "masked"})):
        with pytest.raises(ValueError, match="new items have nothing for the collaborative codes"):
            codable(tokenizer, **options)


def test_networks_of_other_streams_or_shapes_are_refused():
    shape = {"streams": STREAMS, "num_levels": LEVELS, "codebook_size": SIZE}
    for quantisers, message in (
        (stream_quantisers(["text"]), "networks of text for the streams collaborative, text, image"),
        (stream_quantisers(codebook_size=5), "that of collaborative writes 3 × 5 codes, the tokenizer has 3 × 6"),
    ):
        with pytest.raises(ValueError, match=message):
            MSCGRecTokenizer(item_ids=TOKENIZER.item_ids, stream_codes=stream_codes(), **shape, quantisers=quantisers)


# ---- bad input ---------------------------------------------------------------------------------------------------------------------


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
