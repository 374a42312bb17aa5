"""A causal transformer over whole items, and the next-item softmax over the catalogue: the dense half of CEMG, and all of SASRec."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from .kept_cemg import Kept

EMBEDDING_STD = 0.02
"""Small as scores, and scaled up when read. Against 1/√d for both, at a learning rate of its own, validation NDCG@10 rose 5 % on Beauty."""
LAYERS = ("sasrec", "ligr")
LOSSES = ("sampled", "full", "bce")


@dataclass(frozen=True)
class DenseSettings:
    """Size of the network and how it is trained."""

    hidden_size: int = field(default=64, metadata={"help": "Width of the network and of the item embeddings."})
    num_layers: int = field(default=2, metadata={"help": "Transformer layers."})
    num_heads: int = field(default=2, metadata={"help": "Attention heads."})
    feed_forward: int = field(default=1, metadata={"help": "Width of the feed-forward layers, as a multiple of hidden_size."})
    layer: str = field(
        default="sasrec", metadata={"help": "sasrec (Kang & McAuley, 2018), or ligr: gated residuals and SwiGLU, as in eSASRec."}
    )
    dropout: float = field(default=0.2, metadata={"help": "Dropout of inputs, attention weights and sub-layer outputs."})
    max_history: int = field(default=50, metadata={"help": "Items of a history the network reads, the most recent ones."})
    loss: str = field(default="sampled", metadata={"help": "sampled softmax, full softmax, or bce with one negative (the 2018 paper's)."})
    num_negatives: int = field(default=1024, metadata={"help": "Uniform negatives of a batch, shared by all its targets (sampled)."})
    label_smoothing: float = field(default=0.0, metadata={"help": "Share of the probability spread over the catalogue (full)."})
    cosine_scale: float = field(
        default=0.0, metadata={"help": "Above 0: scores are cosines times this (one over a temperature) instead of dot products."}
    )
    content_dim: int = field(default=0, metadata={"help": "Size of the items' content vectors; 0: items are known by their ids alone."})
    id_dropout: float = field(
        default=0.0, metadata={"help": "Share of items per step that are known by their content alone, as new items are."}
    )

    def __post_init__(self) -> None:
        if self.layer not in LAYERS:
            raise ValueError(f"layer: unknown value {self.layer!r}; choose one of {', '.join(LAYERS)}")
        if self.loss not in LOSSES:
            raise ValueError(f"loss: unknown value {self.loss!r}; choose one of {', '.join(LOSSES)}")
        for name in ("hidden_size", "num_layers", "num_heads", "feed_forward", "max_history", "num_negatives"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: must be at least 1, got {getattr(self, name)}")
        for name in ("cosine_scale", "content_dim"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}: must be a finite number of at least 0, got {getattr(self, name)}")
        for name in ("dropout", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: must be at least 0 and below 1, got {getattr(self, name)}")
        if not 0 <= self.id_dropout <= 1:  # 1: content alone
            raise ValueError(f"id_dropout: must lie in 0 … 1, got {self.id_dropout}")
        if self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size: {self.hidden_size} is not a multiple of num_heads = {self.num_heads}")


class CausalAttention(nn.Module):
    """Multi-head attention of every position to itself and earlier ones."""

    def __init__(self, settings: DenseSettings) -> None:
        super().__init__()
        size = settings.hidden_size
        self.num_heads, self.dropout = settings.num_heads, settings.dropout
        self.query, self.key, self.value, self.output = (nn.Linear(size, size) for _ in range(4))

    def forward(self, queries: Tensor, hidden: Tensor) -> Tensor:
        """queries, hidden: (B, T, d), of which the queries may be normalised. Returns (B, T, d)."""

        def heads(values: Tensor) -> Tensor:
            return values.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

        context = functional.scaled_dot_product_attention(
            heads(self.query(queries)),
            heads(self.key(hidden)),
            heads(self.value(hidden)),
            is_causal=True,
            dropout_p=self.dropout if self.training else 0.0,
        )
        return self.output(context.transpose(1, 2).flatten(-2))


class SASRecLayer(nn.Module):
    """The block of Kang & McAuley (2018): normalised queries, residuals around attention and a position-wise ReLU network."""

    def __init__(self, settings: DenseSettings) -> None:
        super().__init__()
        size = settings.hidden_size
        self.attention_norm, self.feed_forward_norm = nn.LayerNorm(size), nn.LayerNorm(size)
        self.attention = CausalAttention(settings)
        self.wide, self.narrow = nn.Linear(size, settings.feed_forward * size), nn.Linear(settings.feed_forward * size, size)
        self.dropout = nn.Dropout(settings.dropout)

    def forward(self, hidden: Tensor) -> Tensor:
        queries = self.attention_norm(hidden)
        hidden = self.feed_forward_norm(queries + self.dropout(self.attention(queries, hidden)))
        return hidden + self.dropout(self.narrow(self.dropout(functional.relu(self.wide(hidden)))))


class LiGRLayer(nn.Module):
    """eSASRec's block (arXiv 2508.06450): pre-norm, SwiGLU, and sub-layers gated by σ(W h) of what they are added to."""

    def __init__(self, settings: DenseSettings) -> None:
        super().__init__()
        size = settings.hidden_size
        wide = settings.feed_forward * size
        self.attention_norm, self.feed_forward_norm = nn.LayerNorm(size), nn.LayerNorm(size)
        self.attention = CausalAttention(settings)
        self.wide, self.gate, self.narrow = nn.Linear(size, wide), nn.Linear(size, wide), nn.Linear(wide, size)
        self.attention_gate, self.feed_forward_gate = nn.Linear(size, size), nn.Linear(size, size)
        self.dropout = nn.Dropout(settings.dropout)

    def forward(self, hidden: Tensor) -> Tensor:
        normed = self.attention_norm(hidden)
        hidden = hidden + self.dropout(self.attention(normed, normed) * self.attention_gate(hidden).sigmoid())
        normed = self.feed_forward_norm(hidden)
        wide = self.dropout(functional.silu(self.gate(normed)) * self.wide(normed))
        return hidden + self.dropout(self.narrow(wide) * self.feed_forward_gate(hidden).sigmoid())


class DenseTower(nn.Module):
    """Reads items, and scores all items as the next one by a dot product.

    An item is its own embedding plus, where there are content vectors, a projection of its content, read or scored. Sequences are
    padded at the end; positions count back from the last item, as in SASRec, whose padding is in front. A learned start state
    stands before the first item, so that an empty history has something to say.

    Args:
        num_items: items that have an embedding; others are known by their content alone.
        settings: size and training.
    """

    def __init__(self, num_items: int, settings: DenseSettings) -> None:
        super().__init__()
        self.settings = settings
        size = settings.hidden_size
        self.item_embedding = nn.Embedding(num_items, size)
        self.start = nn.Parameter(torch.zeros(size))
        self.position = nn.Embedding(settings.max_history + 1, size)
        self.content = nn.Linear(settings.content_dim, size, bias=False) if settings.content_dim else None
        self.layers = nn.ModuleList(
            {"sasrec": SASRecLayer, "ligr": LiGRLayer}[settings.layer](settings) for _ in range(settings.num_layers)
        )
        self.final_norm = nn.LayerNorm(size)
        self.dropout = nn.Dropout(settings.dropout)
        self._vectors, self._single = Kept(), Kept()
        self.reset_parameters()

    def train(self, mode: bool = True) -> DenseTower:
        """As in torch. What was kept for ranking is dropped, so that nothing an optimizer does can be missed."""
        if mode:
            self._vectors.forget()
            self._single.forget()
        return super().train(mode)

    def reset_parameters(self) -> None:
        """Normal embeddings, Xavier matrices, zero biases."""
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=EMBEDDING_STD)
            elif isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if self.content is not None:
            nn.init.normal_(self.content.weight, std=self.settings.content_dim**-0.5 * 0.1)
        nn.init.normal_(self.start, std=EMBEDDING_STD)

    def item_vectors(self, rows: Tensor | None = None, content: Tensor | None = None) -> Tensor:
        """(N, d) vectors of the items of a catalogue.

        In evaluation mode and without gradients they are computed once and kept while weights, rows and content stay as they are.

        Args:
            rows: (N,) embedding row of each item, −1 for an item without one; None: all rows in their order.
            content: (N, content_dim) content vectors, for a tower that knows content.

        Raises:
            ValueError: a tower that was trained with content and gets none.
        """
        if self.content is not None and content is None:
            raise ValueError("this network was trained with content vectors, and none are given")
        parts = (self.item_embedding, self.content)
        # An adapter or a quantised layer in the place of one may depend on more than its weights.
        if self.training or any(type(part) not in (nn.Embedding, nn.Linear, type(None)) for part in parts):
            return self._item_vectors(rows, content)
        sources = [part.weight for part in parts if part is not None] + [given for given in (rows, content) if given is not None]
        return self._vectors.get(sources, lambda: self._item_vectors(rows, content))

    def scores(self, states: Tensor, vectors: Tensor) -> Tensor:
        """(B, N) fp32 dot products of states (B, d) with the vectors (N, d) of a catalogue, whose fp32 copy is kept as they are."""
        with torch.autocast(states.device.type, enabled=False):  # it would round what was made fp32, and near items to one score
            return states.float() @ self._single.get([vectors], vectors.float).T

    def _item_vectors(self, rows: Tensor | None, content: Tensor | None) -> Tensor:
        own = self.item_embedding.weight
        if rows is not None:
            own = own[rows.clamp(min=0)].masked_fill((rows < 0).unsqueeze(1), 0)
        if self.content is None:
            return functional.normalize(own, dim=1) if self.settings.cosine_scale else own
        assert content is not None
        if self.training and self.settings.id_dropout:
            own = own.masked_fill(torch.rand(len(own), 1, device=own.device) < self.settings.id_dropout, 0)
        vectors = own + self.content(content.to(self.content.weight.dtype))
        return functional.normalize(vectors, dim=1) if self.settings.cosine_scale else vectors

    def forward(self, items: Tensor, vectors: Tensor) -> Tensor:
        """(B, 1 + T, d) states: state t has read the first t items.

        Args:
            items: (B, T) item indices, chronological, −1 = padding at the end, T ≤ max_history.
            vectors: (N, d) what `item_vectors` gives.
        """
        present = items >= 0
        embedded = functional.embedding(items.clamp(min=0), vectors) * present.unsqueeze(-1) * self.settings.hidden_size**0.5
        hidden = torch.cat([self.start.expand(len(items), 1, -1), embedded], dim=1)
        length = present.sum(dim=1, keepdim=True)
        place = self.settings.max_history - length + torch.arange(hidden.shape[1], device=items.device)
        hidden = self.dropout(hidden + self.position(place.clamp(max=self.settings.max_history)))
        for layer in self.layers:
            hidden = layer(hidden)
        hidden = self.final_norm(hidden)
        return self.settings.cosine_scale * functional.normalize(hidden, dim=-1) if self.settings.cosine_scale else hidden

    def last_states(self, items: Tensor, vectors: Tensor) -> Tensor:
        """(B, d) states after the whole history; arguments as for `forward`."""
        states = self(items, vectors)
        return states[torch.arange(len(items), device=items.device), (items >= 0).sum(dim=1)]


def next_item_loss(states: Tensor, targets: Tensor, vectors: Tensor, settings: DenseSettings) -> Tensor:
    """Summed loss of n targets under scores h · e.

    "full": cross-entropy over the catalogue. "sampled": over the target and `num_negatives` items drawn uniformly for the whole batch
    (no correction is needed for uniform draws; a negative that is the target itself does not count). "bce": binary cross-entropy of the
    target and of one uniform negative.

    Args:
        states: (n, d).
        targets: (n,) item indices.
        vectors: (N, d) of all items.
        settings: loss and its settings.
    """
    if settings.loss == "full":
        return functional.cross_entropy((states @ vectors.T).float(), targets, reduction="sum", label_smoothing=settings.label_smoothing)
    positive = (states * vectors[targets]).sum(-1).float()
    if settings.loss == "bce":
        negatives = torch.randint(len(vectors), targets.shape, device=targets.device)
        negative = (states * vectors[negatives]).sum(-1).float()
        return -(functional.logsigmoid(positive) + functional.logsigmoid(-negative)).sum()
    negatives = torch.randint(len(vectors), (settings.num_negatives,), device=targets.device)
    scores = (states @ vectors[negatives].T).float().masked_fill(negatives == targets.unsqueeze(1), -torch.inf)
    return (torch.logaddexp(positive, scores.logsumexp(dim=1)) - positive).sum()
