"""Where a recommendation comes from: what the decoder attended to, how sure it was of every code, and which items are coded alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from ..models.cemg import CEMGForConditionalGeneration, CEMGTokenizer
from ..models.cemg.description_cemg import prefix_text


class Explanation(NamedTuple):
    """Of C items after a history of which the model reads the last L.

    attention (C, 1 + L) fp32: shares of the decoder's attention, mean over its layers, heads and the M steps that write the item. Column 0
        is the start token, the others are the items in order; an item's share is the sum over its M tokens. Rows sum to 1.
    log_probs (C, M) fp32: log p of each code after those before it. Rows sum to the score that `recommend` gives by codes alone.
    """

    attention: Tensor
    log_probs: Tensor


class Branch(NamedTuple):
    """Items whose codes begin alike: `items` are the first of the `total` that share `depth` codes and no more with an item."""

    depth: int
    text: str
    items: list[str]
    total: int


@torch.inference_mode()
def explain(model: CEMGForConditionalGeneration, history: Sequence[str], item_ids: Sequence[str]) -> Explanation:
    """One pass of the decoder over the codes of `item_ids`, after `history`.

    The model must attend eagerly (`model.set_attn_implementation("eager")`), because fused kernels do not give their weights away.

    Raises:
        ValueError: an id outside the catalogue, or a model whose attention is fused.
    """
    tokenizer, config = model.tokenizer, model.config
    if tokenizer is None:
        raise ValueError("the model has no catalogue; call model.set_tokenizer(tokenizer)")
    levels, count = config.num_levels, len(item_ids)
    read = list(history[-config.max_history :])
    if not count:
        return Explanation(torch.zeros(0, 1 + len(read)), torch.zeros(0, levels))
    rows = tokenizer.item_indices(item_ids)
    inputs = tokenizer(read, return_tensors="pt").to(model.device)
    states = model.encoder(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).last_hidden_state
    start = torch.full((count, 1), config.decoder_start_token_id)
    output = model(
        encoder_outputs=BaseModelOutput(last_hidden_state=states.expand(count, -1, -1)),
        attention_mask=inputs["attention_mask"].expand(count, -1),
        decoder_input_ids=torch.cat([start, tokenizer.item_tokens[rows, :-1]], dim=1).to(model.device),
        output_attentions=True,
    )
    if not output.cross_attentions or output.cross_attentions[0] is None:
        raise ValueError('the model gives no attention weights; call model.set_attn_implementation("eager") first')
    weights = torch.stack(output.cross_attentions).float().mean(dim=(0, 2, 3))  # layers, heads and steps
    attention = torch.cat([weights[:, :1], weights[:, 1:].unflatten(1, (len(read), config.tokens_per_item)).sum(2)], dim=1)

    codes = tokenizer.item_codes[rows].to(model.device)
    end = config.first_code_id + levels * config.codebook_size
    logits = output.logits[..., config.first_code_id : end].float().unflatten(-1, (levels, config.codebook_size))
    logits = logits.diagonal(dim1=1, dim2=2).movedim(-1, 1)
    if config.constrained_softmax:
        trie = model.trie
        for level in range(levels):
            logits[:, level].masked_fill_(~trie.allowed(level, trie.walk(codes[:, :level])), -torch.inf)
    log_probs = logits.log_softmax(dim=-1).gather(-1, codes.unsqueeze(-1)).squeeze(-1)
    return Explanation(attention.cpu(), log_probs.cpu())


def branches(tokenizer: CEMGTokenizer, item_id: str, limit: int) -> list[Branch]:
    """The items that share codes with an item, nearest first: those that share all codes but the last, then one code less, and so on.

    At most `limit` items are named in all; branches without further items are left out.
    """
    row = int(tokenizer.item_indices([item_id])[0])
    codes, trie = tokenizer.item_codes[row], tokenizer.trie
    found: list[Branch] = []
    first, last = (int(bound) for bound in trie.leaf_range(trie.num_levels, trie.walk(codes)))
    for depth in range(trie.num_levels - 1, 0, -1):
        start, end = (int(bound) for bound in trie.leaf_range(depth, trie.walk(codes[:depth])))
        total = (end - start) - (last - first)
        room = min(total, limit - sum(len(branch.items) for branch in found))
        if total:
            leaves = [*range(start, first), *range(last, end)][:room] if room > 0 else []
            names = [tokenizer.item_ids[int(trie.leaf_items[leaf])] for leaf in leaves]
            found.append(Branch(depth, prefix_text(codes[:depth].tolist()), names, total))
        first, last = start, end
    return found
