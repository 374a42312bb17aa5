"""Settings of what the generator is trained to say, and their way onto the model."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..errors import CEMGError
from ..models.cemg import CEMGForConditionalGeneration, Objective


@dataclass
class ObjectiveConfig:
    """Settings of the generation loss; the defaults are the paper's eq. 5."""

    label_smoothing: float = field(
        default=0.0, metadata={"help": "Share of each target that is spread over all K codes of the level (the permissible ones)."}
    )
    constrained: bool = field(
        default=False,
        metadata={"help": "Softmax over the codes that continue the prefix towards an item, in training and in ranking (MSCGRec)."},
    )
    temperature: float = field(
        default=1.0, metadata={"help": "τ: logits are divided by it in training; LETTER's ranking-guided loss has it below 1."}
    )
    teacher_weight: float = field(
        default=0.0, metadata={"help": "Share of the loss that follows the dense tower, the model's own teacher (needs finetune.dense)."}
    )
    teacher_excludes_history: bool | None = field(
        default=None,
        metadata={"help": "The teacher gives nothing to items of the history; null: if nobody has an item twice in the training data."},
    )
    teacher_temperature: float = field(default=1.0, metadata={"help": "The teacher's scores are divided by it; above 1 it is less sure."})

    def __post_init__(self) -> None:
        self.objective()

    def objective(self, repeats: bool = True) -> Objective:
        """What only training needs to know; `repeats`: whether somebody has an item twice in the training data."""
        excludes = not repeats if self.teacher_excludes_history is None else self.teacher_excludes_history
        try:
            return Objective(self.label_smoothing, self.temperature, self.teacher_weight, self.teacher_temperature, excludes)
        except ValueError as error:
            raise CEMGError(str(error)) from error

    def apply(self, model: CEMGForConditionalGeneration, repeats: bool = True) -> None:
        """Let `model` train by these settings, on data with or without repeats.

        `constrained` goes into its configuration, because its rankings depend on it.
        """
        model.objective = self.objective(repeats)
        model.config.constrained_softmax = self.constrained
