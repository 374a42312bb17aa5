from __future__ import annotations

import pytest
import torch
from generator_samples import CAUSAL, generator, item_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from cemg_hf.demo.explain import branches, explain
from cemg_hf.models.cemg.decoding_cemg import BeamDecoder

HISTORIES = [[], ["item5"], ["item1", "item2", "item3"], [f"item{index}" for index in range(10, 19)]]


def eager(**settings):
    model = generator(item_tokenizer(), **settings)
    model.set_attn_implementation("eager")
    return model


@CAUSAL
@pytest.mark.parametrize("constrained", [False, True], ids=["softmax over all codes", "softmax over codes that continue"])
def test_the_codes_of_an_item_sum_up_to_its_score(item_causal: bool, constrained: bool) -> None:
    model = eager(item_causal=item_causal, constrained_softmax=constrained)
    for history in HISTORIES:
        found = model.recommend(history, k=10)
        explained = explain(model, history, [item_id for item_id, _ in found])
        assert explained.log_probs.shape == (10, 3)
        assert explained.log_probs.sum(1).tolist() == pytest.approx([score for _, score in found], abs=1e-4)


@CAUSAL
def test_attention_is_that_of_the_beam_search(item_causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights the search's own decoder computes with, put together by hand, one history token at a time."""
    model = eager(item_causal=item_causal)
    seen: list[torch.Tensor] = []

    def recording(self: BeamDecoder, number: int, attention, hidden: torch.Tensor) -> torch.Tensor:
        keys, values = self.cross[number]
        query = attention.q(hidden).unflatten(-1, (attention.n_heads, attention.key_value_proj_dim)).transpose(1, 2)
        weights = (query @ keys.transpose(-1, -2) + self.cross_mask).softmax(-1)
        seen.append(weights)
        return attention.o((weights @ values).transpose(1, 2).flatten(-2))

    items = ["item7", "item40", "item22"]
    rows = model.tokenizer.item_indices(items).unsqueeze(0)
    for history in HISTORIES:
        seen.clear()
        inputs = model.tokenizer([history], return_tensors="pt")
        with monkeypatch.context() as patched:
            patched.setattr(BeamDecoder, "_attend_to_history", recording)
            scores = model.score_items(inputs["input_ids"], inputs["attention_mask"], rows)
        # At the first level, where nothing is written yet, all items share one row.
        alike = torch.stack([step.expand(-1, -1, len(items), -1) for step in seen])
        weights = alike.mean(dim=(0, 1, 2))  # steps and layers, the one user, heads
        explained = explain(model, history, items)
        read = history[-5:]
        expected = [weights[:, 0]] + [weights[:, 1 + 3 * place : 4 + 3 * place].sum(1) for place in range(len(read))]
        assert torch.allclose(explained.attention, torch.stack(expected, dim=1), atol=1e-5)
        assert torch.allclose(explained.attention.sum(1), torch.ones(3), atol=1e-5)
        assert torch.allclose(explained.log_probs.sum(1), scores[0], atol=1e-4)


def test_attention_that_is_fused_cannot_be_shown() -> None:
    model = generator(item_tokenizer())
    model.set_attn_implementation("sdpa")
    with pytest.raises(ValueError, match=r"set_attn_implementation\(\"eager\"\)"):
        explain(model, ["item1"], ["item2"])


def test_nothing_to_explain_is_no_error() -> None:
    explained = explain(eager(), ["item1", "item2"], [])
    assert explained.attention.shape == (0, 3)
    assert explained.log_probs.shape == (0, 3)


@given(st.integers(0, 59), st.integers(0, 80))
def test_branches_are_the_items_that_share_codes(row: int, limit: int) -> None:
    tokenizer = item_tokenizer()
    codes = tokenizer.item_codes
    shared = (codes == codes[row]).long().cumprod(dim=1).sum(1)
    found = branches(tokenizer, f"item{row}", limit)
    assert [branch.depth for branch in found] == sorted({int(depth) for depth in shared if 0 < depth < 3}, reverse=True)
    left = limit
    for branch in found:
        own = {f"item{other}" for other in (shared == branch.depth).nonzero().flatten().tolist()}
        assert branch.total == len(own)
        assert len(branch.items) == min(len(own), left)
        assert set(branch.items) <= own
        assert branch.text == "".join(tokenizer.convert_ids_to_tokens(tokenizer.item_tokens[row, : branch.depth].tolist()))
        left -= len(branch.items)
