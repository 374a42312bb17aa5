"""What changes from epoch to epoch while a tokenizer is trained, as one state that the training goes on from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..models.cemg.modeling_rqvae import CEMGRQVAE
from .codebooks import MovingAverageCodebooks
from .epoch_checkpoint import State, optimizer_tensors, prefixed, restore_optimizer, under
from .tokenizer_selection import Selection


@dataclass
class TokenizerRun:
    """A training of the RQ-VAE between two epochs."""

    model: CEMGRQVAE = field(metadata={"help": "As the last epoch left it."})
    aligned: nn.Module | None = field(metadata={"help": "The map of the alignment, where there is one."})
    optimiser: torch.optim.Optimizer = field(metadata={"help": "AdamW over both."})
    scheduler: torch.optim.lr_scheduler.LRScheduler = field(metadata={"help": "Its learning rate."})
    selection: Selection = field(metadata={"help": "Checkpoint kept and early stopping."})
    sample: Tensor = field(metadata={"help": "(n,) rows that start the autoencoder and the codebooks and revive codes."})
    averages: MovingAverageCodebooks | None = field(default=None, metadata={"help": "None during the warm-up."})
    epoch: int = field(default=0, metadata={"help": "Epochs done, those of the warm-up included."})
    finished: bool = field(default=False, metadata={"help": "Whether there is nothing left to train."})

    @property
    def _networks(self) -> dict[str, nn.Module | None]:
        return {"model": self.model, "aligned": self.aligned, "averages": self.averages}

    def state(self) -> State:
        """Tensors and values of everything, torch's random states among them."""
        tensors = {"sample": self.sample, "random": torch.get_rng_state()} | prefixed("optimiser", optimizer_tensors(self.optimiser))
        if self.sample.is_cuda:
            tensors["random_cuda"] = torch.cuda.get_rng_state(self.sample.device)
        for name, module in self._networks.items():
            tensors |= {} if module is None else prefixed(name, module.state_dict())
        kept, values = self.selection.as_state()
        about: dict[str, Any] = {
            "epoch": self.epoch,
            "finished": self.finished,
            "averages": self.averages is not None,
            "scheduler": {name: value for name, value in self.scheduler.state_dict().items() if name != "lr_lambdas"},
            "selection": values,
        }
        return State(tensors | prefixed("selection", kept), about)

    def restore(self, state: State, averages: MovingAverageCodebooks) -> None:
        """Take over what `state` gave; `averages`, of any codebooks, are used where the warm-up was over."""
        tensors, values = state
        self.averages = averages if values["averages"] else None
        for name, module in self._networks.items():
            if module is not None:
                module.load_state_dict(under(name, tensors))
        restore_optimizer(self.optimiser, under("optimiser", tensors))
        self.scheduler.load_state_dict(self.scheduler.state_dict() | values["scheduler"])
        for group, rate in zip(self.optimiser.param_groups, self.scheduler.get_last_lr(), strict=True):
            group["lr"] = rate
        self.selection.from_state(under("selection", tensors), values["selection"])
        self.sample = tensors["sample"].to(self.sample.device)
        self.epoch, self.finished = values["epoch"], values["finished"]
        torch.set_rng_state(tensors["random"])
        if self.sample.is_cuda:
            torch.cuda.set_rng_state(tensors["random_cuda"], self.sample.device)
