from __future__ import annotations

import pytest

from cemg_hf.models.mscgrec import MSCGRecConfig


def test_every_stream_has_token_ranges_of_its_own_and_a_token_for_what_is_missing():
    config = MSCGRecConfig(streams=["a", "b", "c"], num_levels=4, codebook_size=16)
    assert config.tokens_per_item == 12
    assert config.vocab_size == config.first_code_id + 3 * 4 * 16 + 3
    alone = MSCGRecConfig(streams=["a"], num_levels=4, codebook_size=16)
    assert alone.first_code_id == config.first_code_id


def test_streams_and_positions_are_saved_and_loaded(tmp_path):
    for dual in (True, False):
        config = MSCGRecConfig(streams=["text", "image"], dual_positions=dual, num_levels=2, codebook_size=8, constrained_softmax=True)
        config.save_pretrained(tmp_path)
        loaded = MSCGRecConfig.from_pretrained(tmp_path)
        assert (loaded.streams, loaded.dual_positions, loaded.vocab_size) == (["text", "image"], dual, config.vocab_size)
        assert loaded.constrained_softmax


@pytest.mark.parametrize("streams", [[], ["text", "text"]])
def test_streams_that_cannot_be(streams):
    with pytest.raises(ValueError, match="one or more different names"):
        MSCGRecConfig(streams=streams)
