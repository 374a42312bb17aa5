"""Guided fusion of an item's modalities and the residual-quantised autoencoder that turns items into codes (CEMG, eq. 2–4).

The module travels inside Hub checkpoints (the tokenizer uses it to code new items), so it imports torch only.

What the paper leaves open, and what is done here
- *What trains W_q and W_k.* Contrast with the next item (training/fusion_training.py), after which the fusion is frozen. The paper's
  way stays an option: the reconstruction target is x with its gradient stopped, so fusion learns through the encoder's input alone
  and cannot lower the loss by drifting to the modality that is easiest to rebuild.
- *Scale.* Attention scores are divided by √d. With blocks of squared norm d and without the division their spread grows with √d,
  and at d = 768 the softmax starts saturated: 81 % of random items begin with an α outside [.05, .95], none with the division.
- *Sum.* Text takes the axes of R^d from the first one on and image from the last one back, both in PCA order, so that adding them
  lays strong components of one over weak ones of the other (or over nothing, where d_v + d_t ≤ d). The sum is divided by ‖α‖₂:
  otherwise the content half of an item with both modalities weighs half as much as that of an item with one.
- *Start.* W_q and W_k start small, so that α starts near ½ also where e^c has one dominant direction, such as popularity.
- *L_div.* One minus the normalised entropy of the mean soft assignment to a level's codes, averaged over levels.
- *Codebooks* are updated by exponential moving averages, the usual stand-in for the gradient of the codebook term of L_quant. On
  Amazon Beauty (M = 4, K = 256, 64-d z, 20 epochs, one seed) the reconstruction error was .451 against .468 with the gradient.
- *Autoencoder.* Encoder and decoder are MLPs beside a linear path. `initialise_linear` sets the linear path to PCA, so that
  training starts from the best linear autoencoder and, with k-means codebooks, from residual k-means.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

CONTENT_MODALITIES = ("image", "text")
COLLABORATIVE = "collaborative"
MODALITIES = (*CONTENT_MODALITIES, COLLABORATIVE)
FUSIONS = ("guided", "equal")
CONTENT_HEAD_DROPOUT = 0.3
ATTENTION_INIT = 0.5  # standard deviation of the attention scores at the start is about its square for blocks of squared norm d


@dataclass
class CEMGRQVAEConfig:
    """Shape and loss weights of a `CEMGRQVAE`. Plain JSON values only."""

    modality_dims: dict[str, int] = field(
        default_factory=dict, metadata={"help": "Input dimension of each modality in use; keys out of image, text, collaborative."}
    )
    dimension: int = field(default=768, metadata={"help": "d: the dimension every modality is projected to; x has 2d entries."})
    num_levels: int = field(default=4, metadata={"help": "M: codes per item."})
    codebook_size: int = field(default=512, metadata={"help": "K: codes per level."})
    hidden_dims: list[int] = field(
        default_factory=lambda: [512], metadata={"help": "Hidden layer sizes of the encoder; the decoder mirrors them."}
    )
    latent_dim: int = field(default=128, metadata={"help": "Dimension of z and of the code vectors."})
    dropout: float = field(default=0.0, metadata={"help": "Dropout after each hidden layer."})
    content_head_dim: int = field(
        default=0, metadata={"help": "Hidden size of the head that predicts e^c of a new item from its content; 0: no head."}
    )
    content_vector_dim: int = field(
        default=0, metadata={"help": "Size of the content vectors by which new items are compared with a history; 0: none."}
    )
    fusion: str = field(
        default="guided", metadata={"help": "guided: α by attention from e^c (eq. 2); equal: the mean of the content modalities present."}
    )
    unit_rows: bool = field(
        default=False, metadata={"help": "Bring both halves of every item's x to squared norm d, so that items differ by direction only."}
    )
    collaborative_weight: float = field(
        default=1.0, metadata={"help": "Factor on the collaborative half of x; below 1 the codes follow content more closely."}
    )
    lambda_quant: float = field(default=0.25, metadata={"help": "λ_q: weight of the quantisation loss (codebook + commitment)."})
    lambda_div: float = field(default=0.01, metadata={"help": "λ_d: weight of the diversity loss."})
    commitment: float = field(default=0.25, metadata={"help": "β: weight of the commitment term inside the quantisation loss."})

    def __post_init__(self) -> None:
        unknown = sorted(set(self.modality_dims) - set(MODALITIES))
        if unknown or not self.modality_dims:
            raise ValueError(f"modality_dims: {unknown or 'empty'}; give the dimension of at least one of {', '.join(MODALITIES)}")
        if self.fusion not in FUSIONS:
            raise ValueError(f"fusion: {self.fusion!r} is not one of {', '.join(FUSIONS)}")
        sizes = {
            "dimension": self.dimension,
            "num_levels": self.num_levels,
            "codebook_size": self.codebook_size,
            "latent_dim": self.latent_dim,
        }
        sizes |= {f"modality_dims[{name}]": size for name, size in self.modality_dims.items()}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name}: {size} is not a positive integer")
        # One order whatever the caller's, so that equal settings build equal modules from equal seeds.
        self.modality_dims = {name: int(self.modality_dims[name]) for name in MODALITIES if name in self.modality_dims}

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CEMGRQVAEConfig:
        """The inverse of `to_dict`. Raises ValueError on a key that is no setting."""
        unknown = sorted(set(values) - {entry.name for entry in fields(cls)})
        if unknown:
            raise ValueError(f"RQ-VAE configuration: unknown keys {', '.join(unknown)}")
        return cls(**values)


class FusionOutput(NamedTuple):
    """What `GuidedFusion` returns for B items.

    x (B, 2d): content half, then collaborative half. alpha (B, 2): weights of image and text, 0 where absent.
    present (B, 2) bool: which halves of x come from data (the others hold a learned filler).
    """

    x: Tensor
    alpha: Tensor
    present: Tensor


class QuantiserOutput(NamedTuple):
    """codes (B, M) int64; residuals (B, M, D): what each level had to code; quantised (B, D): sum of the chosen code vectors."""

    codes: Tensor
    residuals: Tensor
    quantised: Tensor


class CEMGRQVAEOutput(NamedTuple):
    """Loss of a batch, its parts (scalars, unweighted) and what they were computed from.

    quantised (B, D) is the sum of the chosen code vectors, with the gradient passed straight through to the encoder.
    """

    loss: Tensor
    reconstruction: Tensor
    quantisation: Tensor
    diversity: Tensor
    codes: Tensor
    latent: Tensor
    residuals: Tensor
    quantised: Tensor
    alpha: Tensor


class GuidedFusion(nn.Module):
    """Weighs image and text by attention from the collaborative vector and lays the result beside it (eq. 2, 3).

    α_m = softmax_m((W_q e^c)ᵀ(W_k e^m) / √d) over the content modalities present; x = [Σ_m α_m e^m / ‖α‖₂ ; w e^c]
    with w = `collaborative_weight`.
    A missing e^c is replaced by a learned vector, both as query and as its half of x; so is a content half without modalities.
    """

    def __init__(self, config: CEMGRQVAEConfig) -> None:
        super().__init__()
        self.config = config
        self.projections = nn.ModuleDict(
            {name: _projection(size, config.dimension, reverse=name == "image") for name, size in config.modality_dims.items()}
        )
        self.missing_content = nn.Parameter(torch.zeros(config.dimension))
        self.missing_collaborative = nn.Parameter(torch.zeros(config.dimension))
        self.guided = config.fusion == "guided" and all(name in config.modality_dims for name in CONTENT_MODALITIES)
        if self.guided:
            self.query = nn.Linear(config.dimension, config.dimension, bias=False)
            self.key = nn.Linear(config.dimension, config.dimension, bias=False)
            for layer in (self.query, self.key):
                nn.init.normal_(layer.weight, std=ATTENTION_INIT / config.dimension**0.5)

    def forward(self, features: Mapping[str, Tensor], masks: Mapping[str, Tensor] | None = None) -> FusionOutput:
        """Fuse B items.

        Args:
            features: modality -> (B, d_m) vectors; a modality left out counts as missing for all items.
            masks: modality -> (B,) bool, True where the vector is real; left out means real for all items. Values of
                masked rows (NaN included) have no influence.

        Raises:
            ValueError: a modality the configuration does not know, or a wrong shape.
        """
        size = self._check(features)
        device = self.missing_content.device
        vectors, given = {}, {}
        for name in MODALITIES:
            mask = (masks or {}).get(name)
            if name not in features:
                given[name] = torch.zeros(size, dtype=torch.bool, device=device)
                continue
            given[name] = torch.ones(size, dtype=torch.bool, device=device) if mask is None else mask.to(device=device, dtype=torch.bool)
            values = features[name].to(device=device, dtype=self.missing_content.dtype)
            vectors[name] = self.projections[name](values.masked_fill(~given[name][:, None], 0.0))
        collaborative = self.missing_collaborative.expand(size, -1)
        if COLLABORATIVE in vectors:
            collaborative = torch.where(given[COLLABORATIVE][:, None], vectors[COLLABORATIVE], collaborative)
        available = torch.stack([given[name] for name in CONTENT_MODALITIES], dim=1)
        alpha = self._weights(collaborative, vectors, available)
        content = self.missing_content.expand(size, -1)
        if any(name in vectors for name in CONTENT_MODALITIES):
            shares = alpha / alpha.norm(dim=1, keepdim=True).clamp_min(1e-6)
            mixed = torch.stack([shares[:, i, None] * vectors[name] for i, name in enumerate(CONTENT_MODALITIES) if name in vectors]).sum(0)
            content = torch.where(available.any(1)[:, None], mixed, content)
        present = torch.stack([available.any(1), given[COLLABORATIVE]], dim=1)
        if self.config.unit_rows:
            content, collaborative = (functional.normalize(half, dim=1) * self.config.dimension**0.5 for half in (content, collaborative))
        return FusionOutput(x=torch.cat([content, self.config.collaborative_weight * collaborative], dim=1), alpha=alpha, present=present)

    def _weights(self, collaborative: Tensor, vectors: Mapping[str, Tensor], available: Tensor) -> Tensor:
        """α (B, 2): a softmax over the modalities available to each item; a row of zeros where there are none."""
        scores = torch.zeros(available.shape, dtype=collaborative.dtype, device=collaborative.device)
        if self.guided:
            query = self.query(collaborative) / self.config.dimension**0.5
            columns = [
                (query * self.key(vectors[name])).sum(1) if name in vectors else scores[:, i] for i, name in enumerate(CONTENT_MODALITIES)
            ]
            scores = torch.stack(columns, dim=1)
        return scores.masked_fill(~available, torch.finfo(scores.dtype).min).softmax(1) * available

    def _check(self, features: Mapping[str, Tensor]) -> int:
        """Number of items, after checking names and shapes."""
        if not features:
            raise ValueError("features: empty; give at least one modality")
        size = next(iter(features.values())).shape[0]
        for name, values in features.items():
            if name not in self.config.modality_dims:
                raise ValueError(
                    f"features: modality {name!r} is not one the RQ-VAE was built for ({', '.join(self.config.modality_dims)})"
                )
            if tuple(values.shape) != (size, self.config.modality_dims[name]):
                raise ValueError(f"features[{name}]: shape {tuple(values.shape)}, expected {(size, self.config.modality_dims[name])}")
        return size


class ContentHead(nn.Module):
    """Predicts the collaborative vector of an item from its content, for items that nobody has interacted with yet."""

    def __init__(self, config: CEMGRQVAEConfig) -> None:
        super().__init__()
        self.dims = {name: config.modality_dims[name] for name in CONTENT_MODALITIES if name in config.modality_dims}
        width = sum(self.dims.values()) + len(self.dims)
        self.network = _LinearPlusMLP([width, config.content_head_dim, config.modality_dims[COLLABORATIVE]], CONTENT_HEAD_DROPOUT)

    def forward(self, features: Mapping[str, Tensor], masks: Mapping[str, Tensor] | None = None) -> Tensor:
        """e^c (B, d_c) predicted from image and text vectors; what is missing counts as zeros, marked by a flag."""
        size = len(next(iter(features.values())))
        weight = self.network.linear.weight
        parts = []
        for name, dimension in self.dims.items():
            if name not in features:
                parts += [weight.new_zeros(size, dimension + 1)]
                continue
            mask = (masks or {}).get(name)
            given = torch.ones(size, dtype=torch.bool, device=weight.device) if mask is None else mask.to(weight.device, torch.bool)
            parts += [features[name].to(weight).masked_fill(~given[:, None], 0.0), given.to(weight)[:, None]]
        return self.network(torch.cat(parts, dim=1))

    @torch.no_grad()
    def fill(self, features: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Features and masks (of all features) of B items in which those without e^c but with content have the e^c predicted from it."""
        filled, known = dict(features), dict(masks)
        was_training = self.training
        self.eval()
        predicted = self(features, masks)
        self.train(was_training)
        absent = torch.zeros(len(predicted), dtype=torch.bool, device=predicted.device)
        has_content = torch.stack([known.get(name, absent) for name in CONTENT_MODALITIES]).any(0)
        given = known.get(COLLABORATIVE, absent)
        own = filled.get(COLLABORATIVE, torch.zeros_like(predicted))
        filled[COLLABORATIVE] = torch.where((has_content & ~given)[:, None], predicted, own)
        known[COLLABORATIVE] = given | has_content
        return filled, known


class ResidualQuantiser(nn.Module):
    """M residual codebooks: at each level the nearest code vector, and what it leaves to the next level.

    Code vectors are a buffer: they follow the moving average of the residuals they code (training/codebooks.py), not a gradient.
    """

    codebooks: Tensor

    def add_codebooks(self, num_levels: int, codebook_size: int, dimension: int) -> None:
        """Random codebooks (M, K, D); by itself, so that a subclass decides at which point of its start they are drawn."""
        self.register_buffer("codebooks", torch.randn(num_levels, codebook_size, dimension) / dimension**0.5)

    def quantise(self, latent: Tensor) -> QuantiserOutput:
        """Residual quantisation of z (B, D): at each level take the nearest code vector and pass on what is left."""
        residual, codes, residuals, chosen = latent, [], [], []
        for codebook in self.codebooks:
            nearest = squared_distances(residual.detach(), codebook).argmin(1)
            vector = codebook[nearest]
            codes.append(nearest)
            residuals.append(residual)
            chosen.append(vector)
            residual = residual - vector
        return QuantiserOutput(codes=torch.stack(codes, 1), residuals=torch.stack(residuals, 1), quantised=torch.stack(chosen).sum(0))

    def quantisation_error(self, found: QuantiserOutput) -> Tensor:
        """Mean squared distance of residuals and their code vectors, over entries and items, summed over levels.

        Its gradient is that of the commitment term: it moves what is quantised, not the codebooks.
        """
        levels = torch.arange(len(self.codebooks), device=found.codes.device)
        return (found.residuals - self.codebooks[levels, found.codes]).square().mean((0, 2)).sum()

    def diversity_loss(self, residuals: Tensor) -> Tensor:
        """1 − H(mean soft assignment) / log K, mean over levels: 0 when a batch (B, M, D) spreads evenly over a level's codes."""
        distances = squared_distances(residuals.transpose(0, 1), self.codebooks)
        # The temperature follows the data, so that the softness does not depend on the scale of the latent space.
        temperature = distances.detach().amin(2).mean(1).clamp_min(1e-6)[:, None, None]
        usage = (-distances / temperature).softmax(2).mean(1)
        entropy = -(usage * usage.clamp_min(1e-12).log()).sum(1)
        return 1 - (entropy / max(torch.log(torch.tensor(float(self.codebooks.shape[1]))).item(), 1e-12)).mean()

    @torch.no_grad()
    def set_codes(self, level: int, vectors: Tensor, codes: Tensor | None = None) -> None:
        """Write code vectors of a level.

        Args:
            level: counted from 0.
            vectors: (K, D), the whole codebook, or (n, D).
            codes: (n,) rows that are written; None: all.
        """
        rows = slice(None) if codes is None else codes
        self.codebooks[level, rows] = vectors.to(self.codebooks)


class CEMGRQVAE(ResidualQuantiser):
    """Fusion, encoder, M residual codebooks and decoder (eq. 4)."""

    def __init__(self, config: CEMGRQVAEConfig) -> None:
        super().__init__()
        self.config = config
        width = 2 * config.dimension
        self.fusion = GuidedFusion(config)
        self.encoder = _LinearPlusMLP([width, *config.hidden_dims, config.latent_dim], config.dropout)
        self.decoder = _LinearPlusMLP([config.latent_dim, *reversed(config.hidden_dims), width], config.dropout)
        has_head = config.content_head_dim > 0 and set(config.modality_dims) > {COLLABORATIVE} and COLLABORATIVE in config.modality_dims
        self.content_head = ContentHead(config) if has_head else None
        self.add_codebooks(config.num_levels, config.codebook_size, config.latent_dim)
        # The directions of R^d in which the content of the catalogue varies most, (d, V).
        basis = torch.zeros(config.dimension, config.content_vector_dim)
        self.register_buffer("content_basis", basis, persistent=config.content_vector_dim > 0)
        self.content_basis: Tensor

    def fuse(self, features: Mapping[str, Tensor], masks: Mapping[str, Tensor] | None = None) -> FusionOutput:
        """x, α and the halves of x that come from data; see `GuidedFusion.forward`."""
        return self.fusion(features, masks)

    def encode(self, features: Mapping[str, Tensor], masks: Mapping[str, Tensor] | None = None) -> Tensor:
        """z = E(x), (B, D)."""
        return self.encoder(self.fuse(features, masks).x)

    def decode(self, quantised: Tensor) -> Tensor:
        """x̂ (B, 2d) from sums of code vectors (B, D)."""
        return self.decoder(quantised)

    def warmup_loss(self, features: Mapping[str, Tensor], masks: Mapping[str, Tensor] | None = None) -> Tensor:
        """Reconstruction loss of the autoencoder alone: the decoder sees z, the codebooks play no part."""
        fused = self.fuse(features, masks)
        return reconstruction_loss(self.decoder(self.encoder(fused.x)), fused.x, fused.present)

    def forward(
        self,
        features: Mapping[str, Tensor],
        masks: Mapping[str, Tensor] | None = None,
        seen: Mapping[str, Tensor] | None = None,
    ) -> CEMGRQVAEOutput:
        """Loss of eq. 4 on B items: reconstruction + λ_q · (codebook + β · commitment) + λ_d · diversity.

        Reconstruction is the mean squared error over the entries of x that come from data; fillers are left out.

        Args:
            features: modality -> (B, D_m).
            masks: modality -> (B,) booleans, True where the vector is real; left out means real for all items.
            seen: the masks of what the encoder gets to see where that is less than there is (modality dropout): x stays the whole item.

        Returns:
            The loss with its parts, the codes and the fused item.
        """
        fused = self.fuse(features, masks)
        latent = self.encoder(fused.x if seen is None else self.fuse(features, seen).x)
        found = self.quantise(latent)
        straight_through = latent + (found.quantised - latent).detach()
        reconstruction = reconstruction_loss(self.decoder(straight_through), fused.x, fused.present)
        quantisation = self._quantisation_loss(found)
        diversity = self.diversity_loss(found.residuals)
        loss = reconstruction + self.config.lambda_quant * quantisation + self.config.lambda_div * diversity
        return CEMGRQVAEOutput(
            loss=loss,
            reconstruction=reconstruction,
            quantisation=quantisation,
            diversity=diversity,
            codes=found.codes,
            latent=latent,
            residuals=found.residuals,
            quantised=straight_through,
            alpha=fused.alpha,
        )

    def _quantisation_loss(self, found: QuantiserOutput) -> Tensor:
        """Codebook term + β · commitment term: both have the same value; the first is what the moving average minimises."""
        error = self.quantisation_error(found)
        return error.detach() + self.config.commitment * error

    @torch.no_grad()
    def content_vectors(self, features: Mapping[str, Tensor], masks: Mapping[str, Tensor] | None = None) -> Tensor:
        """(B, V) unit vectors whose cosines are nearly those of the content halves of x; zeros for an item without content."""
        fused = self.fuse(features, masks)
        halves = functional.normalize(fused.x[:, : self.config.dimension], dim=1)
        return functional.normalize(halves @ self.content_basis, dim=1) * fused.present[:, :1]

    @torch.no_grad()
    def fill_collaborative(
        self, features: Mapping[str, Tensor], masks: Mapping[str, Tensor] | None = None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Features and masks of B items in which items without e^c but with content have the e^c predicted from that content.

        Without a head (`content_head_dim` 0) nothing is filled in.
        """
        known = {name: torch.ones(len(values), dtype=torch.bool, device=values.device) for name, values in features.items()}
        known |= {name: mask.to(self.codebooks.device, torch.bool) for name, mask in (masks or {}).items()}
        return (dict(features), known) if self.content_head is None else self.content_head.fill(features, known)

    @torch.no_grad()
    def encode_codes(self, features: Mapping[str, Tensor], masks: Mapping[str, Tensor] | None = None, batch_size: int = 4096) -> Tensor:
        """Nearest-code assignment of N items; deterministic (dropout is off whatever the mode).

        Args:
            features: modality -> (N, D_m).
            masks: modality -> (N,) booleans, True where the vector is real; left out means real for all items.
            batch_size: items at once.

        Returns:
            (N, M) int64 on the CPU.
        """
        was_training = self.training
        self.eval()
        count = next(iter(features.values())).shape[0] if features else 0
        codes = [torch.empty(0, self.config.num_levels, dtype=torch.int64)]
        for start in range(0, count, batch_size):
            rows = slice(start, start + batch_size)
            latent = self.encode({k: v[rows] for k, v in features.items()}, {k: v[rows] for k, v in (masks or {}).items()})
            codes.append(self.quantise(latent).codes.cpu())
        self.train(was_training)
        return torch.cat(codes)

    @torch.no_grad()
    def initialise_linear(self, components: Tensor, mean: Tensor, scale: float = 1.0) -> None:
        """Start as a linear autoencoder: z = scale · C(x − mean), x̂ = Cᵀz / scale + mean.

        Args:
            components: C (≤ D, 2d) with orthonormal rows; missing rows leave their latent dimensions unused.
            mean: (2d,).
            scale: factor that brings z to unit variance.
        """
        for path in (self.encoder, self.decoder):
            path.silence()
        used = components.shape[0]
        self.encoder.linear.weight.zero_()[:used] = scale * components
        self.encoder.linear.bias.zero_()[:used] = -scale * components @ mean
        self.decoder.linear.weight.zero_()[:, :used] = components.T / scale
        self.decoder.linear.bias.copy_(mean)


def squared_distances(points: Tensor, centres: Tensor) -> Tensor:
    """‖p − c‖² (…, B, K) for points (…, B, D) and centres (…, K, D)."""
    cross = points @ centres.transpose(-1, -2)
    return points.square().sum(-1, keepdim=True) - 2 * cross + centres.square().sum(-1).unsqueeze(-2)


def reconstruction_loss(reconstructed: Tensor, target: Tensor, present: Tensor) -> Tensor:
    """Mean squared error over the halves of x that come from data; no gradient reaches the target."""
    halves = (reconstructed - target.detach()).square().unflatten(1, (2, -1)).mean(2)
    return (halves * present).sum() / present.sum().clamp_min(1)


class _LinearPlusMLP(nn.Module):
    """A linear map plus an MLP between the same ends."""

    def __init__(self, sizes: list[int], dropout: float) -> None:
        super().__init__()
        self.linear = nn.Linear(sizes[0], sizes[-1])
        layers: list[nn.Module] = []
        for before, after in pairwise(sizes[:-1]):
            layers += [nn.Linear(before, after), nn.GELU(), nn.Dropout(dropout)]
        self.mlp = nn.Sequential(*layers)
        self.last = nn.Linear(sizes[-2], sizes[-1])

    def forward(self, values: Tensor) -> Tensor:
        return self.linear(values) + self.last(self.mlp(values))

    def silence(self) -> None:
        """Make the MLP contribute nothing until it is trained."""
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)


def _projection(size: int, dimension: int, reverse: bool) -> nn.Linear:
    """d_m -> d along the axes, from the first on or from the last back; a block of squared norm d_m becomes one of squared norm d."""
    layer = nn.Linear(size, dimension, bias=False)
    axes = torch.eye(dimension, size) * max(1.0, dimension / size) ** 0.5
    with torch.no_grad():
        layer.weight.copy_(axes.flip(0) if reverse else axes)
    return layer
