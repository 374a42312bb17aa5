"""What the generator is trained to say: the token loss of eq. 5, and the settings that other papers put on it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from .trie_cemg import ItemTrie

IGNORED = -100  # label of a position without a target


@dataclass(frozen=True)
class Objective:
    """Token loss of a batch. The defaults are eq. 5: cross-entropy over the K codes of the level.

    Only training knows these settings; a model ranks the same with any of them. What rankings depend on, the codes that a softmax
    runs over, is `CEMGConfig.constrained_softmax`.

    Args:
        label_smoothing: ε, the share of the target that is spread evenly over the K codes of the level (the permissible ones where the
            softmax is constrained).
        temperature: τ, by which logits are divided. Below 1 the loss weighs codes that come close to the target more than those far
            off: LETTER's ranking-guided generation loss, −Σ log [exp(s_y / τ) / Σ_v exp(s_v / τ)] (arXiv 2405.07314). Scores at
            inference are not divided, as in the paper.
        teacher_weight: w, the share of the loss that follows the teacher: (1 − w) · CE(target) + w · Σ −teacher · log p.
        teacher_temperature: by which the scores of a model's own dense tower are divided before it teaches.
        teacher_excludes_history: whether that tower gives nothing to items of the history; right where nobody takes an item twice.
    """

    label_smoothing: float = 0.0
    temperature: float = 1.0
    teacher_weight: float = 0.0
    teacher_temperature: float = 1.0
    teacher_excludes_history: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing: must lie in [0, 1), got {self.label_smoothing}")
        for name in ("temperature", "teacher_temperature"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}: must be a positive number, got {getattr(self, name)}")
        if not 0 <= self.teacher_weight <= 1:
            raise ValueError(f"teacher_weight: must lie in [0, 1], got {self.teacher_weight}")

    def loss(self, logits: Tensor, codes: Tensor, permissible: Tensor | None = None, teacher: Tensor | None = None) -> Tensor:
        """Sum of the losses of all target codes, fp32.

        Args:
            logits: (B, T, M, K), at each position over the codes of its level.
            codes: (B, T, M) target codes 0 … K−1; −100 is ignored.
            permissible: (B, T, M, K) bool, the codes the softmax runs over (`permissible_codes`); None: all K. A target outside them
                makes the loss infinite.
            teacher: (B, T, M, K) distributions, needed where `teacher_weight` is above 0 and without effect elsewhere. What they give
                to codes that are not permissible is dropped; ignored positions may hold anything.

        Raises:
            ValueError: a weight without a teacher, or a teacher of another shape.
        """
        ignored = codes == IGNORED
        scores = logits.float()
        if self.temperature != 1:
            scores = scores / self.temperature
        if permissible is not None:
            permissible = permissible | ignored.unsqueeze(-1)  # a softmax over nothing has no gradient, not even a gradient of 0
            scores = scores.masked_fill(~permissible, -torch.inf)
        hard = functional.cross_entropy(scores.flatten(0, -2), codes.flatten(), ignore_index=IGNORED, reduction="sum")
        target = self._soft_target(scores, permissible, teacher)
        if target is None:
            return hard
        log_probs = scores.log_softmax(dim=-1)
        if permissible is not None:
            log_probs = log_probs.masked_fill(~permissible, 0.0)
        soft = -(target.masked_fill(ignored.unsqueeze(-1), 0.0) * log_probs).sum()
        return (1 - self.teacher_weight) * (1 - self.label_smoothing) * hard + soft

    def _soft_target(self, scores: Tensor, permissible: Tensor | None, teacher: Tensor | None) -> Tensor | None:
        """(B, T, M, K) or one that expands to it: the part of the target distributions that is not the target code; None: there is none."""
        target = None
        if self.label_smoothing:
            evenly = torch.full_like(scores[:1, :1, :1], 1 / scores.shape[-1])
            if permissible is not None:
                evenly = permissible / permissible.sum(dim=-1, keepdim=True)
            target = (1 - self.teacher_weight) * self.label_smoothing * evenly
        if self.teacher_weight:
            if teacher is None:
                raise ValueError(f"objective.teacher_weight is {self.teacher_weight}, but there is no teacher; give one, or set it to 0")
            if teacher.shape != scores.shape:
                raise ValueError(f"teacher must be B × T × M × K = {tuple(scores.shape)}, got {tuple(teacher.shape)}")
            told = self.teacher_weight * teacher.to(scores)
            target = told if target is None else target + told
        return None if target is None else target.expand_as(scores)


def permissible_codes(trie: ItemTrie, codes: Tensor) -> Tensor:
    """Which codes continue the prefix of a target towards an item of the catalogue, at every level (MSCGRec, arXiv 2602.03713).

    Args:
        trie: the catalogue, on the device of `codes`.
        codes: (..., M) codes of items; −100 is ignored.

    Returns: (..., M, K) bool; nothing is permissible after a prefix that no item has.
    """
    nodes = torch.zeros_like(codes[..., 0])
    levels = []
    for level in range(trie.num_levels):
        levels.append(trie.allowed(level, nodes))
        nodes = trie.descend(level, nodes, codes[..., level])
    return torch.stack(levels, dim=-2)
