"""DINO self-distillation (arXiv 2104.14294) with a residual quantiser in the student's path: RQ-DINO of MSCGRec (arXiv 2602.03713).

Student and teacher are the same network. The student sees all crops of a picture, the teacher the two global ones. What the student says
of a crop is quantised (the gradient passes straight through), and its head predicts from the sum of the chosen code vectors what the
teacher's head says of another crop, from its latent vector as it is. No pixel is reconstructed. The teacher's weights follow the
student's by momentum; its outputs are centred and sharpened against collapse; code vectors are moving averages of the residuals they
code, and codes that no crop takes move to where the error is.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ..data.collators import IGNORED_LABEL
from ..errors import CEMGError
from ..features.picture_store import Pictures
from ..features.projection import Projection, can_fit
from ..models.cemg.assignment_cemg import collision_rate
from ..models.cemg.modeling_rqvae import QuantiserOutput
from ..models.rq_dino import RQDinoModel
from .codebooks import MovingAverageCodebooks, initialise_codebooks
from .multi_crop import MultiCrop
from .quantise import level_report

PICTURES_AT_ONCE = 256
KMEANS_PICTURES = 20_000


@dataclass
class DistillationConfig:
    """DINO's head, temperatures and momenta, at sizes for small catalogues, and what the quantiser adds."""

    prototypes: int = field(default=1024, metadata={"help": "Outputs of the heads; DINO has 65,536 for 1.3 million pictures."})
    hidden_dim: int = field(default=512, metadata={"help": "Width of the heads' two hidden layers (DINO: 2048)."})
    bottleneck_dim: int = field(default=128, metadata={"help": "Width before the prototypes (DINO: 256)."})
    student_temperature: float = field(default=0.1, metadata={"help": "Temperature of the student's softmax."})
    teacher_temperature: float = field(
        default=0.04,
        metadata={"help": "Temperature of the teacher's softmax after its warm-up; sharpening. DINO's long trainings go to 0.07."},
    )
    warmup_teacher_temperature: float = field(default=0.04, metadata={"help": "The same at the start."})
    teacher_warmup_ratio: float = field(default=0.3, metadata={"help": "Share of all steps over which it rises."})
    center_momentum: float = field(default=0.9, metadata={"help": "Momentum of the mean that the teacher's outputs are centred by."})
    teacher_momentum: float = field(
        default=0.996, metadata={"help": "Momentum of the teacher's weights at the start; rises to 1 by a cosine."}
    )
    freeze_last_layer_ratio: float = field(
        default=0.01, metadata={"help": "Share of all steps, at the start, in which the student's prototypes stay as they are."}
    )
    quantise_student: bool = field(
        default=True, metadata={"help": "False is plain DINO: the codebooks follow, but the student does not see them."}
    )
    commitment: float = field(default=0.25, metadata={"help": "Weight of the commitment term, which draws latents to their code vectors."})
    diversity: float = field(default=0.1, metadata={"help": "Weight of the diversity term: even use of each level's codes."})
    codebook_decay: float = field(default=0.99, metadata={"help": "Decay of the moving averages of code vectors."})
    revive_every_steps: int = field(default=50, metadata={"help": "Steps after which codes that no crop took are moved."})

    def __post_init__(self) -> None:
        for name in ("prototypes", "hidden_dim", "bottleneck_dim", "revive_every_steps"):
            if getattr(self, name) < 1:
                raise CEMGError(f"distillation.{name} = {getattr(self, name)}: must be at least 1")
        for name in ("student_temperature", "teacher_temperature", "warmup_teacher_temperature"):
            if getattr(self, name) <= 0:
                raise CEMGError(f"distillation.{name} = {getattr(self, name)}: must be above 0")
        for name in ("center_momentum", "teacher_momentum", "codebook_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise CEMGError(f"distillation.{name} = {getattr(self, name)}: must lie in [0, 1)")
        for name in ("teacher_warmup_ratio", "freeze_last_layer_ratio", "commitment", "diversity"):
            if getattr(self, name) < 0:
                raise CEMGError(f"distillation.{name} = {getattr(self, name)}: must be at least 0")


class PrototypeHead(nn.Module):
    """DINO's projection head: an MLP, a unit vector, and its cosines with the prototypes (B, P)."""

    def __init__(self, width: int, config: DistillationConfig) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(width, config.hidden_dim),
            nn.GELU(),
            nn.Linear(config.hidden_dim, config.hidden_dim),
            nn.GELU(),
            nn.Linear(config.hidden_dim, config.bottleneck_dim),
        )
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                # DINO's 0.02, which is this at its width of 2048. In a narrower head the same would let biases drown the pictures.
                nn.init.trunc_normal_(layer.weight, std=layer.in_features**-0.5)
                nn.init.zeros_(layer.bias)
        self.prototypes = nn.Parameter(torch.randn(config.prototypes, config.bottleneck_dim))

    def forward(self, latent: Tensor, frozen: Tensor | float = 0.0) -> Tensor:
        """Cosines in float32; `frozen` is the share of the prototypes' gradient that is held back."""
        prototypes = functional.normalize(self.prototypes, dim=1)
        # Held back by a factor and not by requires_grad: data parallelism waits for the gradient of every parameter.
        prototypes = frozen * prototypes.detach() + (1 - frozen) * prototypes
        unit = functional.normalize(self.mlp(latent).float(), dim=1)
        # In single precision: divided by a temperature of 0.04, half a percent would be an error of 0.1 in a logit.
        with torch.autocast(unit.device.type, enabled=False):
            return functional.linear(unit, prototypes)


class SelfDistillation(nn.Module):
    """Student with heads and quantiser, its teacher, and the loss of both; trained by `loop.train`.

    The loop has to call `on_step`. All that changes besides the student's weights is in the state dict, so a checkpoint
    holds it.
    """

    center: Tensor
    steps: Tensor

    def __init__(self, student: RQDinoModel, pictures: Pictures, crops: MultiCrop, config: DistillationConfig, total_steps: int) -> None:
        super().__init__()
        self.config, self.total_steps, self.pictures, self.crops = config, total_steps, pictures, crops
        self.student = student
        self.student_head = PrototypeHead(student.config.latent_dim, config)
        self.teacher = copy.deepcopy(student.encoder).requires_grad_(False)
        self.teacher_head = copy.deepcopy(self.student_head).requires_grad_(False)
        self.register_buffer("center", torch.zeros(config.prototypes))
        self.register_buffer("steps", torch.zeros(()))  # done; schedules read it on the device, where nothing waits for it
        self.averages = MovingAverageCodebooks(student.quantiser, config.codebook_decay, PICTURES_AT_ONCE)
        self._seen: tuple[Tensor, Tensor, Tensor, Tensor] | None = None

    @property
    def device(self) -> torch.device:
        return self.center.device

    @torch.no_grad()
    def initialise(self, batch_size: int) -> None:
        """PCA of what the untrained backbone says of the whole pictures for the projection, k-means of the result for the codebooks.

        Without it what all pictures have in common, most of a ReLU feature's length, would be most of z, and a collapse close at hand.
        """
        rows = torch.randperm(len(self.pictures))[:KMEANS_PICTURES]
        # Two pictures at least: batch norm knows no variance of one.
        parts = [part for part in rows.split(max(2, batch_size)) if len(part) > 1]
        encoder = self.student.encoder
        self.train()
        pixels = (self.student.preprocess(self.pictures.batch(part, self.device)[0]) for part in parts)
        features = torch.cat([encoder.backbone(part).float() for part in pixels])
        everywhere = np.ones(len(features), dtype=bool)
        if can_fit(features.cpu().numpy(), everywhere):
            principal, _ = Projection.fit(features.cpu().numpy(), everywhere, self.student.config.latent_dim)
            weight = torch.from_numpy(principal.scale * principal.components).to(self.device)
            encoder.projection.weight[: len(weight)] = weight
            encoder.projection.bias[: len(weight)] = -weight @ torch.from_numpy(principal.mean).to(self.device)
        self.teacher.load_state_dict(encoder.state_dict())
        initialise_codebooks(self.student.quantiser, encoder.project(features))
        # The averages begin from the codebooks as they are now.
        size = min(batch_size, len(self.pictures)) * (2 + self.crops.config.local_crops)
        self.averages = MovingAverageCodebooks(self.student.quantiser, self.config.codebook_decay, size)

    def forward(self, rows: Tensor, num_items_in_batch: Tensor | int) -> SimpleNamespace:
        """Loss of the pictures `rows` (B,), −100 where there is none.

        Cross-entropy from the teacher's to the student's distributions over prototypes, mean over pairs of a global crop and another crop
        of the same picture; commitment and diversity of the quantiser.
        """
        real = rows != IGNORED_LABEL
        pixels, aspect = self.pictures.batch(rows.clamp_min(0), self.device)
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            crops = [self.student.normalise(part).flatten(0, 1) for part in self.crops(pixels, aspect)]
        count = len(rows)
        with torch.no_grad():
            said = self.teacher_head(self.teacher(crops[0]))
        latent = torch.cat([self.student.encoder(part) for part in crops if len(part)])
        found = self.student.quantise(latent)
        shown = latent + (found.quantised - latent).detach() if self.config.quantise_student else latent
        frozen = (self.steps < self.config.freeze_last_layer_ratio * self.total_steps).float()
        predicted = self.student_head(shown, frozen).unflatten(0, (-1, count))
        with torch.autocast(self.device.type, enabled=False):
            loss = (self._distance(said.unflatten(0, (2, count)), predicted) * real).sum() + self._extra(found) * real.sum()
        if self.training:
            self._seen = (said.mean(0), found.codes, found.residuals.detach(), latent.detach())
        return SimpleNamespace(loss=loss / num_items_in_batch)

    def _distance(self, said: Tensor, predicted: Tensor) -> Tensor:
        """Cross-entropy (B,) of the student's (V, B, P) from the teacher's (2, B, P) outputs, mean over pairs of two different crops."""
        target = self._sharpened(said)
        entropy = -torch.einsum("tbp,vbp->tvb", target, (predicted / self.config.student_temperature).log_softmax(2))
        pairs = ~torch.eye(2, len(predicted), dtype=torch.bool, device=self.device)
        return (entropy * pairs[:, :, None]).sum((0, 1)) / pairs.sum()

    def _extra(self, found: QuantiserOutput) -> Tensor:
        """Commitment and diversity; nothing where the student is not quantised."""
        if not self.config.quantise_student:
            return found.quantised.new_zeros(())
        quantiser = self.student.quantiser
        return self.config.commitment * quantiser.quantisation_error(found) + self.config.diversity * quantiser.diversity_loss(
            found.residuals
        )

    def _sharpened(self, said: Tensor) -> Tensor:
        """The teacher's distributions over prototypes: centred, then sharpened."""
        return ((said - self.center) / self.teacher_temperature).softmax(-1)

    @property
    def teacher_temperature(self) -> Tensor:
        """Of the next step."""
        start, end = self.config.warmup_teacher_temperature, self.config.teacher_temperature
        return start + (end - start) * (self.steps / max(1e-9, self.config.teacher_warmup_ratio * self.total_steps)).clamp(max=1)

    @torch.no_grad()
    def on_step(self, step: int) -> None:
        """After optimizer step `step` (from 1): teacher, centre and codebooks follow."""
        self.steps.fill_(step)
        momentum = 1 - (1 - self.config.teacher_momentum) * (math.cos(math.pi * step / self.total_steps) + 1) / 2
        for teacher, student in ((self.teacher, self.student.encoder), (self.teacher_head, self.student_head)):
            torch._foreach_lerp_(list(teacher.parameters()), list(student.parameters()), 1 - momentum)
        assert self._seen is not None
        said, codes, residuals, latent = self._seen
        self._seen = None
        self.center.lerp_(said, 1 - self.config.center_momentum)
        self.averages.update(codes, residuals)
        # Codes moved at the very end would stay where they were drawn, untrained.
        if step % self.config.revive_every_steps == 0 and step + self.config.revive_every_steps <= self.total_steps:
            self.averages.revive(latent)

    @torch.no_grad()
    def encode(self) -> dict[str, Tensor]:
        """`latent` (P, D) float32 and nearest `codes` (P, M) of all whole pictures by the student, on the CPU."""
        was_training = self.training
        self.eval()
        parts = [self.student(self.pictures.batch(rows, self.device)[0]) for rows in self._parts()]
        self.train(was_training)
        return {
            "latent": torch.cat([part.latent for part in parts]).float().cpu(),
            "codes": torch.cat([part.codes for part in parts]).cpu(),
        }

    @torch.no_grad()
    def measure(self, model: nn.Module | None = None) -> dict[str, float]:
        """Figures that tell learning from collapse, over all whole pictures.

        `perplexity` and `used_codes` are means over levels of nearest codes, `collision_rate` the share of pictures that share all codes,
        `quantisation_error` what quantisation loses of the variance of z. `target_entropy` is the mean entropy of the teacher's targets, as
        a share of log P: 1 says the same of every prototype. `prototypes_used` is the perplexity of their mean over pictures, as a share of
        P: 1 / P says the same of every picture.
        """
        was_training = self.training
        self.eval()
        found = self.encode()
        quantised = self.student.quantise(found["latent"].to(self.device)).quantised.cpu()
        latent, codes = found["latent"], found["codes"]
        levels = [level_report(column, self.student.config.codebook_size) for column in codes.T]
        variance = (latent - latent.mean(0)).square().sum()
        # Summed up part by part: of all pictures at once, DINO's 65,536 prototypes would be more than memory holds.
        entropy, total = 0.0, torch.zeros(self.config.prototypes)
        for rows in self._parts():
            pixels = self.student.preprocess(self.pictures.batch(rows, self.device)[0])
            targets = self._sharpened(self.teacher_head(self.teacher(pixels))).cpu()
            entropy += _entropy(targets).sum().item()
            total += targets.sum(0)
        self.train(was_training)
        count = len(self.pictures)
        return {
            "perplexity": _mean(level["perplexity"] for level in levels),
            "used_codes": _mean(level["used_codes"] for level in levels),
            "collision_rate": collision_rate(codes),
            "quantisation_error": ((latent - quantised).square().sum() / variance.clamp_min(1e-12)).item(),
            "target_entropy": entropy / count / math.log(max(2, self.config.prototypes)),
            "prototypes_used": (_entropy(total / count).exp() / self.config.prototypes).item(),
        }

    def _parts(self) -> tuple[Tensor, ...]:
        return torch.arange(len(self.pictures)).split(PICTURES_AT_ONCE)


def _entropy(probabilities: Tensor) -> Tensor:
    return -(probabilities * probabilities.clamp_min(1e-12).log()).sum(-1)


def _mean(values: Iterable[Any]) -> float:
    found = list(values)
    return float(sum(found) / len(found))
