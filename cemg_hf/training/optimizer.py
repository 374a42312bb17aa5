"""AdamW and its learning-rate schedule, as every stage uses them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_scheduler

from ..errors import CEMGError
from .loop_config import SCHEDULES, LoopConfig


def build_optimizer(model: nn.Module, config: LoopConfig, total_steps: int, *, fused: bool) -> tuple[torch.optim.Optimizer, LRScheduler]:
    """AdamW over the trainable parameters and the schedule over `total_steps` optimizer steps, warm-up included."""
    optimizer = torch.optim.AdamW(parameter_groups(model, config.weight_decay), lr=config.learning_rate, fused=fused)
    warmup = config.warmup_steps if config.warmup_steps is not None else round(config.warmup_ratio * total_steps)
    return optimizer, get_scheduler(SCHEDULES[config.schedule], optimizer, num_warmup_steps=warmup, num_training_steps=total_steps)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters with and without weight decay; norms, biases (all vectors) and embeddings go without.

    An embedding row that no batch holds gets no gradient, and decay would only shrink it.

    Raises:
        CEMGError: nothing to train.
    """
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        raise CEMGError("model: has no trainable parameters; set requires_grad on those that should be trained")
    decayed = [parameter for parameter in trained if parameter.ndim >= 2 and id(parameter) not in embeddings]
    others = [parameter for parameter in trained if parameter.ndim < 2 or id(parameter) in embeddings]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
