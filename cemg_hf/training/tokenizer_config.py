"""Settings of the item tokenizer: fusion, RQ-VAE and their training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Literal

from ..errors import CEMGError
from ..features.store import MODALITIES
from ..models.cemg.modeling_rqvae import CONTENT_MODALITIES, CEMGRQVAEConfig
from ..models.mscgrec.tokenization_mscgrec import MOST_LEVELS
from .fusion_training import NextItemConfig


@dataclass
class TokenizerTrainingConfig:
    """Settings of the RQ-VAE and of its training; defaults of the paper where it gives them.

    Siblings made of the same code: `modalities: [text]` is TIGER's tokenizer, with `lambda_align` above 0 and `diversity: clusters`
    LETTER's (recipes/systems/); `epochs: 0` residual k-means on PCA; `next_item.epochs: 0` keeps interactions out of the content of
    all of them, as their papers do.
    """

    modalities: list[str] = field(
        default_factory=list, metadata={"help": "Which modalities of the features the codes are made of; empty: all there are."}
    )
    dimension: int = field(default=768, metadata={"help": "d: the dimension every modality is projected to."})
    num_levels: int = field(default=4, metadata={"help": "M: codes per item."})
    codebook_size: int = field(default=512, metadata={"help": "K: codes per level; with fewer than 20·K items choose a smaller K."})
    unit_rows: bool = field(
        default=True, metadata={"help": "Bring both halves of every item's x to squared norm d, so that items differ by direction only."}
    )
    collaborative_weight: float = field(
        default=1.0, metadata={"help": "Factor on the collaborative half of x; below 1 the codes follow content more closely."}
    )
    lambda_quant: float = field(default=0.25, metadata={"help": "λ_q: weight of the quantisation loss."})
    lambda_div: float = field(default=0.01, metadata={"help": "λ_d: weight of the diversity loss."})
    lambda_align: float = field(
        default=0.0,
        metadata={"help": "Weight of LETTER's alignment: the quantised vector has to pick out its item's collaborative vector."},
    )
    commitment: float = field(default=0.25, metadata={"help": "β: weight of the commitment term inside the quantisation loss."})
    modality_dropout: float = field(
        default=0.0, metadata={"help": "Share of items per step of which the encoder does not see one modality (of those with several)."}
    )
    hidden_dims: list[int] = field(
        default_factory=lambda: [512], metadata={"help": "Hidden layer sizes of the encoder; the decoder mirrors them."}
    )
    latent_dim: int = field(default=128, metadata={"help": "Dimension of z and of the code vectors."})
    dropout: float = field(default=0.0, metadata={"help": "Dropout after each hidden layer."})
    content_head_dim: int = field(
        default=256, metadata={"help": "Hidden size of the head that predicts e^c of new items from their content; 0: no head."}
    )
    content_vector_dim: int = field(
        default=64, metadata={"help": "Size of the content vectors kept beside the codes, to rank new items by; 0: none."}
    )
    fusion: str = field(default="guided", metadata={"help": "guided (eq. 2) or equal (mean of the content modalities present)."})
    next_item: NextItemConfig = field(default_factory=NextItemConfig, metadata={"help": "What trains the fusion."})
    epochs: int = field(default=30, metadata={"help": "Passes over the items with quantisation; 0: residual k-means on PCA."})
    warmup_epochs: int = field(
        default=2, metadata={"help": "Passes of the autoencoder without quantisation before k-means sets the codebooks."}
    )
    batch_size: int = field(default=512, metadata={"help": "Items per step; at most an eighth of the items."})
    learning_rate: float = field(
        default=1e-3, metadata={"help": "Peak learning rate of AdamW; 5 % linear warm-up, then cosine decay to 0."}
    )
    weight_decay: float = field(default=0.0, metadata={"help": "Weight decay of AdamW."})
    codebook_decay: float = field(default=0.98, metadata={"help": "Decay per step of the moving averages behind the code vectors."})
    evaluation_interval: int = field(
        default=5, metadata={"help": "Epochs between evaluations of reconstruction, codebook use and collisions."}
    )
    patience: int = field(
        default=4, metadata={"help": "Stop after this many evaluations in a row without a better checkpoint by the rule; 0: never."}
    )
    sample_items: int = field(
        default=100_000, metadata={"help": "Items that PCA and k-means see, and that are passed over per epoch, in larger catalogues."}
    )
    diversity: Literal["entropy", "clusters"] = field(
        default="entropy",
        metadata={"help": "What lambda_div weighs: the entropy of code use, or LETTER's contrast between clusters of code vectors."},
    )
    diversity_clusters: int = field(
        default=10,
        metadata={
            "help": "Clusters of equal size of each level's code vectors (diversity: clusters); fewer where K is below twice as many."
        },
    )
    identifiers: int = field(
        default=1,
        metadata={"help": "Code sets per item to train generators on: the checkpoint kept, and those evaluated next to it (MTGRec)."},
    )
    start_from: str = field(
        default="", metadata={"help": "Tokenizer folder to continue from on newer data, so that items keep their codes where they can."}
    )

    def __post_init__(self) -> None:
        unknown = [name for name in self.modalities if name not in MODALITIES]
        if unknown or len(set(self.modalities)) < len(self.modalities):
            raise CEMGError(f"modalities = {self.modalities}: name some of {', '.join(MODALITIES)}, each once")
        for name in ("batch_size", "evaluation_interval", "sample_items", "diversity_clusters", "identifiers"):
            if getattr(self, name) < 1:
                raise CEMGError(f"{name}: {getattr(self, name)} is not a positive integer")
        for name in (
            "epochs",
            "warmup_epochs",
            "patience",
            "lambda_quant",
            "lambda_div",
            "lambda_align",
            "commitment",
            "weight_decay",
            "content_head_dim",
            "content_vector_dim",
        ):
            if getattr(self, name) < 0:
                raise CEMGError(f"{name}: {getattr(self, name)} is negative")
        for name in ("codebook_decay", "modality_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise CEMGError(f"{name}: {getattr(self, name)} is outside [0, 1)")
        if not 1 <= self.num_levels <= MOST_LEVELS:
            raise CEMGError(f"num_levels: {self.num_levels} is outside 1 … {MOST_LEVELS} (levels are lettered)")
        if not 0 <= self.dropout < 1:
            raise CEMGError(f"dropout: {self.dropout} is outside [0, 1)")
        if self.collaborative_weight < 0:
            raise CEMGError(f"collaborative_weight: {self.collaborative_weight} is negative")
        if not self.learning_rate > 0:
            raise CEMGError(f"learning_rate: {self.learning_rate} is not positive")
        evaluations = max(1, math.ceil(self.epochs / self.evaluation_interval))
        if self.identifiers > evaluations:
            raise CEMGError(
                f"identifiers: {self.epochs} epochs are evaluated {evaluations} times, too few for {self.identifiers} identifiers; "
                "raise epochs or lower evaluation_interval"
            )

    def model_config(self, modality_dims: Mapping[str, int]) -> CEMGRQVAEConfig:
        """The RQ-VAE's own configuration for modalities of these input dimensions."""
        shared = {entry.name for entry in fields(CEMGRQVAEConfig)} & {entry.name for entry in fields(self)}
        values = {name: getattr(self, name) for name in sorted(shared)}
        has_content = any(name in modality_dims for name in CONTENT_MODALITIES)
        if self.diversity != "entropy":
            values["lambda_div"] = 0.0  # the model's own diversity loss is the entropy
        values["content_vector_dim"] = min(self.content_vector_dim, self.dimension) if has_content else 0
        try:
            return CEMGRQVAEConfig(modality_dims=dict(modality_dims), **values)
        except ValueError as error:
            raise CEMGError(str(error)) from error
