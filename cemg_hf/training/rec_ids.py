"""Rec-ID assignment of MMGRec: train the Graph RQ-VAE on content and training interactions, give every item its Rec-ID.

Other than in the paper: AdamW for SGD and NDCG@10 for Recall@10 in early stopping, as everywhere in this package; the RQ-VAE is
CEMG's, whose codebooks start at k-means and follow moving averages in place of the codebook term's gradient, and whose encoder and
decoder have a linear path beside the two-layer MLP. The collaborative vectors of the features are not used: h^c is learned here.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import set_seed
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch_geometric.utils import to_torch_csr_tensor

from ..artefacts import Manifest, is_current, write_folder, write_json
from ..data import PreparedDataset
from ..data.ragged import IntArray
from ..data.splits import EvaluationCases
from ..errors import CEMGError
from ..features.store import CONTENT_MODALITIES, FeatureStore
from ..models.cemg.modeling_rqvae import COLLABORATIVE
from ..models.mmgrec import MultimodalGraphEncoder, assign_rec_ids
from .collaborative import NegativeSampler
from .loop import LoopConfig, train
from .loop_config import run_identity
from .quantise import FeatureBatches, quantise
from .scoring import rank_by_scores
from .tokenizer_config import TokenizerTrainingConfig
from .tokenizer_training import train_rqvae
from .validation import WIDTH, Validation

logger = logging.getLogger(__name__)

ARRAYS_NAME = "rec_ids.safetensors"
REPORT_NAME = "rec_ids_report.json"


def _graph_loop() -> LoopConfig:
    return LoopConfig(epochs=40, batch_size=8192, learning_rate=5e-3, weight_decay=0.0, eval_every=2, patience=4)


@dataclass
class RecIdConfig:
    """Graph RQ-VAE and the Rec-IDs made with it."""

    modalities: list[str] = field(default_factory=list, metadata={"help": "Content modalities of the items; empty: all there are."})
    dimension: int = field(default=64, metadata={"help": "D: size of item and user representations, and width of the recommender."})
    graph_layers: int = field(default=2, metadata={"help": "Graph convolutions."})
    l2: float = field(default=1e-5, metadata={"help": "L2 regularisation of the representations before propagation, in the BPR loss."})
    loop: LoopConfig = field(default_factory=_graph_loop, metadata={"help": "Optimisation of the graph."})
    num_levels: int = field(default=4, metadata={"help": "M: tokens of a Rec-ID, the popularity token included."})
    codebook_size: int = field(default=256, metadata={"help": "K: tokens per level; the paper tries 64, 128 and 256."})
    latent_dim: int = field(default=32, metadata={"help": "Size of z and of the code vectors."})
    commitment: float = field(default=0.25, metadata={"help": "β of the quantisation loss."})
    rqvae_epochs: int = field(default=30, metadata={"help": "Most passes of the RQ-VAE over the items."})

    def __post_init__(self) -> None:
        unknown = [name for name in self.modalities if name not in CONTENT_MODALITIES]
        if unknown:
            raise CEMGError(f"modalities = {self.modalities}: name some of {', '.join(CONTENT_MODALITIES)}")
        least = {"dimension": 1, "graph_layers": 1, "num_levels": 2, "codebook_size": 2, "latent_dim": 1, "rqvae_epochs": 0, "l2": 0}
        for name, minimum in least.items():
            if not getattr(self, name) >= minimum:
                raise CEMGError(f"{name} = {getattr(self, name)}: must be at least {minimum}")

    def quantiser(self) -> TokenizerTrainingConfig:
        """Settings of the RQ-VAE over h_i: the weights of eq. 10, two-layer encoder and decoder, no fusion and no diversity loss."""
        return TokenizerTrainingConfig(
            dimension=self.dimension,
            num_levels=self.num_levels - 1,
            codebook_size=self.codebook_size,
            unit_rows=False,
            lambda_quant=1.0,
            lambda_div=0.0,
            commitment=self.commitment,
            hidden_dims=[self.dimension],
            latent_dim=self.latent_dim,
            content_head_dim=0,
            content_vector_dim=0,
            epochs=self.rqvae_epochs,
        )


class RecIds(NamedTuple):
    """item_codes (N, M) int64; item_vectors h_i (N, D) and user_vectors h_u (U, D), centred, with mean squared row norm D."""

    item_codes: Tensor
    item_vectors: Tensor
    user_vectors: Tensor


def make_rec_ids(
    config: RecIdConfig, data: PreparedDataset, store: FeatureStore, output: Path, seed: int, inputs: dict[str, str], validation_users: int
) -> RecIds:
    """Train a Graph RQ-VAE, assign Rec-IDs and keep them in the folder `output`; read from there when that is current.

    Args:
        config: settings.
        data: its training interactions are the graph.
        store: its content features are the items'.
        output: folder to write; the training's checkpoints lie beside it until it is written.
        seed: of initialisation, sample order, negatives and k-means.
        inputs: fingerprints of data set and features.
        validation_users: users whose validation item chooses the epoch of the graph; 0 = all.

    Raises:
        CEMGError: features of another catalogue or without content, nothing to train on, or the time budget ended.
    """
    manifest = Manifest("rec-ids", asdict(config) | {"validation_users": validation_users}, inputs, seed)
    if not is_current(output, manifest):
        started = time.perf_counter()
        encoder, report = _train_graph(config, data, store, output.with_name(f"{output.name}-graph"), manifest, validation_users)
        state = PartialState()
        if state.is_main_process:
            with torch.no_grad():
                users, items = (_standardised(vectors).cpu() for vectors in encoder.representations())
            vectors, known = {COLLABORATIVE: items.numpy()}, {COLLABORATIVE: np.ones(len(items), dtype=bool)}
            rqvae, quality = train_rqvae(vectors, known, config.quantiser(), seed)
            found = quantise(rqvae, FeatureBatches(vectors, known))
            assert found.latent is not None
            codes, assignment = assign_rec_ids(found.codes, found.latent, rqvae.codebooks, torch.from_numpy(data.train_item_counts()))
            with write_folder(output, manifest, started) as scratch:
                save_file(RecIds(codes, items, users)._asdict(), scratch / ARRAYS_NAME)
                kept = {name: quality[name] for name in ("levels", "reconstruction_error", "pca_error", "seconds")}
                largest = int(codes[:, -1].max()) + 1
                write_json(
                    scratch / REPORT_NAME,
                    {"graph": report, "rqvae": kept, **asdict(assignment), "items_with_equal_tokens_at_most": largest},
                )
        state.wait_for_everyone()
    return RecIds(**load_file(output / ARRAYS_NAME))


def training_graph(data: PreparedDataset) -> tuple[Tensor, IntArray, IntArray]:
    """The graph of the training interactions: (U + N, U + N) CSR adjacency, and users and items of its distinct edges, sorted by both.

    Node u is user u, node U + i is item i; repeated interactions are one edge.
    """
    all_users, all_items = data.train_pairs()
    users, items = np.divmod(np.unique(all_users * data.num_items + all_items), max(1, data.num_items))
    edges = torch.from_numpy(np.stack([users, items + data.num_users]))
    size = data.num_users + data.num_items
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse (CSR tensor support|invariant checks)")
        return to_torch_csr_tensor(torch.cat([edges, edges.flip(0)], dim=1), size=(size, size)), users, items


def content_features(store: FeatureStore, modalities: Sequence[str]) -> Tensor:
    """(N, Σ d_m) content vectors side by side, zeros where one is missing.

    Raises:
        CEMGError: none of the modalities, or one that was asked for, is in the store.
    """
    names = [name for name in CONTENT_MODALITIES if name in (modalities or store.modalities)]
    missing = [name for name in names if name not in store.modalities]
    if missing or not names:
        raise CEMGError(f"features: no {missing[0] if missing else 'text or image'} vectors; MMGRec needs content, encode it")
    blocks = [np.where(store.modalities[name].mask[:, None], store.modalities[name].vectors, 0) for name in names]
    return torch.from_numpy(np.concatenate(blocks, axis=1).astype(np.float32))


class TripleCollator:
    """Edge numbers → users, their items (`labels`) and items drawn from those they have not interacted with (R⁻ of eq. 10).

    Args:
        users, items: (E,) distinct training pairs, sorted by (user, item).
        sampler: draws the negatives; torch's global state decides which, so that checkpoints hold it.
    """

    def __init__(self, users: IntArray, items: IntArray, sampler: NegativeSampler) -> None:
        self.users, self.items, self.sampler = users, items, sampler

    def __call__(self, batch: Sequence[int]) -> dict[str, Tensor]:
        chosen = np.asarray(batch)
        users = self.users[chosen]
        negatives = self.sampler(users, np.random.default_rng(int(torch.randint(2**62, (1,)))))
        return {
            "users": torch.from_numpy(users),
            "labels": torch.from_numpy(self.items[chosen]),
            "negatives": torch.from_numpy(negatives),
        }


def _train_graph(
    config: RecIdConfig,
    data: PreparedDataset,
    store: FeatureStore,
    work: Path,
    manifest: Manifest,
    validation_users: int,
) -> tuple[MultimodalGraphEncoder, dict[str, object]]:
    """The graph encoder with its best weights, and what its training did."""
    adjacency, users, items = training_graph(data)
    sampler = NegativeSampler(users, items, data.num_users, data.num_items)
    ranked = sampler.available[users] > 0
    if not ranked.any():
        raise CEMGError(f"{data.folder}: no training interaction whose user lacks an item, so nothing to rank; give more data")
    set_seed(manifest.seed)
    encoder = MultimodalGraphEncoder(
        content_features(store, config.modalities), adjacency, config.dimension, config.graph_layers, config.l2
    )

    def rank(cases: EvaluationCases) -> IntArray:
        h_users, h_items = encoder.representations()

        def scores_of(rows: IntArray) -> Tensor:
            return h_users[torch.from_numpy(cases.users[rows]).to(h_users.device)] @ h_items.T

        return rank_by_scores(scores_of, cases.histories, data.num_items, WIDTH, exclude_history=True)[0]

    report = train(
        encoder,
        config=config.loop,
        dataset=range(int(ranked.sum())),  # type: ignore[arg-type]
        collate_fn=TripleCollator(users[ranked], items[ranked], sampler),
        evaluate=Validation(rank, data, validation_users, manifest.seed),
        folder=work,
        seed=manifest.seed,
        identity=run_identity(manifest.inputs, manifest.settings),
    )
    if report.stopped_by == "time_budget":
        raise CEMGError(
            f"mmgrec: time budget of {config.loop.time_budget_s} s used up by the graph; run the same command again to continue"
        )
    return encoder, {"edges": len(users), **asdict(report)}


def _standardised(vectors: Tensor) -> Tensor:
    """Centred, and scaled as a whole to mean squared row norm D."""
    centred = vectors - vectors.mean(dim=0)
    return centred / centred.square().mean().sqrt().clamp_min(1e-12)
