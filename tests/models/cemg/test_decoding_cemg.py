"""The decoder of the beam search against T5's own on whole prefixes."""

from __future__ import annotations

import pytest
import torch
from generator_samples import NUM_LEVELS, generator, item_tokenizer

from cemg_hf.models.cemg.decoding_cemg import BeamDecoder

WIDTHS = (1, 4, 3)  # beams grow and end


@pytest.mark.parametrize("feed_forward", ["relu", "gated-gelu"])
@pytest.mark.parametrize("item_causal", [True, False], ids=["item-causal", "bidirectional"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_steps_are_t5_on_the_whole_prefix_of_every_beam(feed_forward, item_causal, dtype):
    tokenizer = item_tokenizer()
    model = generator(tokenizer, feed_forward_proj=feed_forward, item_causal=item_causal).to(dtype)
    inputs = tokenizer([["item1", "item2"], [], ["item3"]], padding=True, return_tensors="pt")
    draw = torch.Generator().manual_seed(1)
    written = torch.empty(3, 1, 0, dtype=torch.int64)
    with torch.inference_mode():
        states = model.encoder(**inputs).last_hidden_state
        cross = model._cross_attention_mask(inputs["attention_mask"], seen_items=None)
        decoder = BeamDecoder(model.decoder, states, cross, NUM_LEVELS)
        for step, width in enumerate(WIDTHS):
            tokens = torch.randint(model.config.vocab_size, (3, width), generator=draw)
            parents = torch.randint(WIDTHS[step - 1] if step else 1, (3, width), generator=draw)
            written = torch.cat([written.gather(1, parents.unsqueeze(-1).expand(-1, -1, step)), tokens.unsqueeze(-1)], dim=-1)
            found = decoder.step(tokens, parents)
            for user in range(3):
                expected = model.decoder(
                    input_ids=written[user],
                    encoder_hidden_states=states[user : user + 1].expand(width, -1, -1),
                    encoder_attention_mask=cross[user : user + 1].expand(width, -1, step + 1, -1),
                    use_cache=False,
                ).last_hidden_state[:, -1]
                tolerance = 1e-5 if dtype == torch.float32 else 0.06
                assert torch.allclose(found[user].float(), expected.float(), atol=tolerance, rtol=tolerance)


def test_half_precision_does_not_overflow():
    tokenizer = item_tokenizer()
    model = generator(tokenizer).half()
    with torch.no_grad():
        for block in model.decoder.block:
            block.layer[2].DenseReluDense.wo.weight.fill_(3e4)
            block.layer[2].DenseReluDense.wi.weight.fill_(3.0)
    scores = model.rank(**tokenizer([["item1"]], return_tensors="pt"), num_beams=5)[1]
    assert scores.isfinite().all()
