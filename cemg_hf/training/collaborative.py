"""Collaborative item embeddings: LightGCN on the user–item graph of the training interactions, trained with BPR.

LightGCN (He et al., 2020) propagates e^(l+1) = Â e^(l) with Â = D^-1/2 A D^-1/2 and reads the mean of all layers,
e = 1/(L+1) Σ_l e^(l). The network is torch-geometric's `LightGCN`; Â is normalised once and kept as a CSR matrix, because message
passing over an edge list gathers and scatters one row per edge and layer (`benchmarks/lightgcn_propagation.py` has the figures).
"""

from __future__ import annotations

import logging
import time
import warnings
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.nn.conv import LGConv
from torch_geometric.nn.models import LightGCN
from torch_geometric.nn.models.lightgcn import BPRLoss
from tqdm.auto import tqdm

from ..data import PreparedDataset, Ragged
from ..errors import CEMGError
from ..evaluation.metrics import rank_from_scores
from .epoch_checkpoint import EpochCheckpoint, State, optimizer_tensors, prefixed, restore_optimizer, under
from .scoring import SCORES_AT_ONCE

logger = logging.getLogger(__name__)

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
RECALL_AT = 20
LEAST_STEPS_PER_EPOCH = 8
"""On a graph of two batches, `patience` would end the training after a few dozen steps."""


@dataclass
class CollaborativeConfig:
    """Settings of LightGCN and its training."""

    dimension: int = field(default=64, metadata={"help": "Size of the embeddings."})
    layers: int = field(default=3, metadata={"help": "Propagation layers; 0 is plain matrix factorisation."})
    learning_rate: float = field(default=1e-2, metadata={"help": "Step size of Adam."})
    batch_size: int = field(
        default=8192,
        metadata={"help": "(user, item, negative) triples per step, fewer on a small graph (8 steps per epoch at least)."},
    )
    weight_decay: float = field(
        default=1e-3,
        metadata={"help": "λ of BPR: L2 regularisation of the batch's embeddings before propagation; dense data wants less (1e-4)."},
    )
    init_std: float = field(default=0.1, metadata={"help": "Standard deviation of the normal initialisation."})
    epochs: int = field(default=200, metadata={"help": "Most passes over the training interactions."})
    eval_every: int = field(default=5, metadata={"help": "Epochs between two measurements of validation recall@20."})
    patience: int = field(default=5, metadata={"help": "Stop after this many measurements in a row without a better recall@20."})
    time_budget_s: float | None = field(
        default=None, metadata={"help": "Stop after this many seconds of training; results then depend on the machine's speed."}
    )

    def check(self) -> None:
        """Raise CEMGError for a setting that cannot work."""
        least = {"dimension": 1, "layers": 0, "batch_size": 1, "epochs": 1, "eval_every": 1, "patience": 1, "weight_decay": 0}
        for name, minimum in least.items():
            if not getattr(self, name) >= minimum:
                raise CEMGError(f"collaborative: {name} = {getattr(self, name)}: must be at least {minimum}")
        for name in ("learning_rate", "init_std", "time_budget_s"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise CEMGError(f"collaborative: {name} = {value}: must be greater than 0")


@dataclass(frozen=True, eq=False)
class CollaborativeResult:
    """Embeddings of the best epoch."""

    item_embeddings: FloatArray = field(metadata={"help": "Mean over the propagation layers, (N, dimension); zeros where masked."})
    user_embeddings: FloatArray = field(metadata={"help": "The same of the users, (users, dimension)."})
    mask: npt.NDArray[np.bool_] = field(metadata={"help": "(N,) False: the item has no training interaction, hence no embedding."})
    report: dict[str, Any] = field(metadata={"help": "Graph size, epochs, best epoch, recall@20 and loss curves, seconds; plain JSON."})


class SymmetricPropagation(torch.autograd.Function):
    """Â x for a symmetric Â, whose backward is Â again; torch's own would transpose the CSR matrix in every step."""

    @staticmethod
    def forward(ctx: Any, adjacency: Tensor, x: Tensor) -> Tensor:
        ctx.adjacency = adjacency
        return _multiply(adjacency, x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        return None, _multiply(ctx.adjacency, gradients[0])


class SymmetricLGConv(LGConv):
    """LightGCN's convolution over a pre-normalised symmetric CSR adjacency."""

    def __init__(self) -> None:
        super().__init__(normalize=False)

    def message_and_aggregate(self, adj_t: Tensor, x: Tensor) -> Tensor:
        return SymmetricPropagation.apply(adj_t, x)


class SymmetricLightGCN(LightGCN):
    """torch-geometric's LightGCN; call it with the output of `normalized_adjacency` in place of an edge index."""

    def __init__(self, num_nodes: int, embedding_dim: int, num_layers: int) -> None:
        super().__init__(num_nodes, embedding_dim, num_layers, normalize=False)
        self.convs = torch.nn.ModuleList(SymmetricLGConv() for _ in range(num_layers))


def normalized_adjacency(users: IntArray, items: IntArray, num_users: int, num_items: int) -> Tensor:
    """Â = D^-1/2 A D^-1/2 of the bipartite graph as a float32 CSR tensor of shape (num_users + num_items,) × 2.

    Node u is user u, node num_users + i is item i. The (user, item) pairs must be distinct; a node without an edge has an empty row.
    """
    nodes = num_users + num_items
    rows, columns = np.concatenate([users, items + num_users]), np.concatenate([items + num_users, users])
    degrees = np.bincount(rows, minlength=nodes)
    order = np.lexsort((columns, rows))
    rows, columns = rows[order], columns[order]
    weights = 1.0 / np.sqrt(degrees[rows] * degrees[columns])
    offsets = np.concatenate([[0], np.cumsum(degrees)])
    # Half as much index to read per edge where 32 bits are enough.
    index_type = torch.int32 if max(len(rows), nodes) < 2**31 else torch.int64
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(
            torch.from_numpy(offsets).to(index_type),
            torch.from_numpy(columns).to(index_type),
            torch.from_numpy(weights).float(),
            size=(nodes, nodes),
            check_invariants=True,
        )


class NegativeSampler:
    """Items uniform over those that a user has not interacted with in training; exact, and one pass however dense the user is.

    The r-th item (r = 0 …) that is not among a user's sorted items s_0 < s_1 < … is r + #{j : s_j − j ≤ r}. The gaps s_j − j of all
    users stand in one sorted array, so that one binary search per draw finds the count.
    """

    def __init__(self, users: IntArray, items: IntArray, num_users: int, num_items: int) -> None:
        """`users`, `items`: the distinct training pairs (pairs,), sorted by (user, item)."""
        counts = np.bincount(users, minlength=num_users)
        self.starts = np.cumsum(counts) - counts
        self.available = num_items - counts
        self.stride = num_items + 1
        self.gaps = users * self.stride + items - (np.arange(len(users)) - self.starts[users])

    def __call__(self, users: IntArray, generator: np.random.Generator) -> IntArray:
        """One negative for each entry of `users` (draws,), all of which must have an item left (`available` > 0)."""
        drawn = generator.integers(0, self.available[users])
        skipped = np.searchsorted(self.gaps, users * self.stride + drawn, side="right") - self.starts[users]
        return drawn + skipped


@dataclass(frozen=True, eq=False)
class _ValidationCases:
    """Validation cases whose target is in the graph, in graph indices; the others (`total` counts them too) are misses."""

    users: IntArray
    targets: IntArray
    training: Ragged
    total: int

    def recall(self, user_embeddings: Tensor, item_embeddings: Tensor) -> float:
        """Share of all cases whose target is among the first 20 by e_u · e_i, items of the user's training excluded."""
        hits = 0
        size = max(1, SCORES_AT_ONCE // len(item_embeddings))
        for first in range(0, len(self.users), size):
            users, targets = self.users[first : first + size], self.targets[first : first + size]
            scores = user_embeddings[torch.from_numpy(users).to(user_embeddings.device)] @ item_embeddings.T
            ranks = rank_from_scores(scores, targets, self.training.take(users))
            hits += int((ranks < RECALL_AT).sum())
        return hits / self.total


def train_collaborative(
    dataset: PreparedDataset, config: CollaborativeConfig, seed: int, checkpoint: EpochCheckpoint | None = None
) -> CollaborativeResult:
    """Train LightGCN on the training interactions of `dataset` and return the embeddings of the best validation recall@20.

    Repeated (user, item) pairs are one edge; items without training interactions are not in the graph. On one machine the same seed gives
    the same embeddings (unless `time_budget_s` ends the training). Without validation cases the last epoch's embeddings are returned.

    With a `checkpoint` a training that was stopped goes on and ends the same; without one it does not ask for the time.

    Raises:
        CEMGError: a setting that cannot work, no training interaction, no user with an item left as a negative, or training diverged.
        OutOfTime: the `time_limit` around this call has passed, with the checkpoint written.
    """
    config.check()
    started = time.perf_counter()
    all_users, all_items = dataset.train_pairs()
    if len(all_items) == 0:
        raise CEMGError(f"{dataset.folder}: no training interactions; collaborative embeddings need some")
    mask = np.bincount(all_items, minlength=dataset.num_items) > 0
    kept = np.flatnonzero(mask)
    graph_item = np.where(mask, np.cumsum(mask) - 1, -1)
    num_users, num_items = dataset.num_users, len(kept)
    users, items = np.divmod(np.unique(all_users * num_items + graph_item[all_items]), num_items)

    sampler = NegativeSampler(users, items, num_users, num_items)
    positive = sampler.available[users] > 0
    if not positive.any():
        raise CEMGError(f"{dataset.folder}: every user has every item in training, so there is nothing to rank; leave collaborative out")
    cases = _validation_cases(dataset, Ragged.from_lengths(items, np.bincount(users, minlength=num_users)), graph_item)

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    adjacency = normalized_adjacency(users, items, num_users, num_items).to(device)
    with torch.random.fork_rng(devices=[]):  # the constructor draws from the global generator
        model = SymmetricLightGCN(num_users + num_items, config.dimension, config.layers)
    torch.nn.init.normal_(model.embedding.weight, std=config.init_std, generator=torch.Generator().manual_seed(seed))
    setup = time.perf_counter() - started
    best, report = _train(model.to(device), adjacency, users[positive], items[positive], sampler, cases, config, seed, checkpoint)

    embeddings = np.zeros((dataset.num_items, config.dimension), dtype=np.float32)
    embeddings[kept] = best[num_users:].cpu().numpy()
    report = {
        "users": num_users,
        "items": num_items,
        "masked_items": dataset.num_items - num_items,
        "edges": len(users),
        **report,
        "settings": asdict(config),
        "seconds": round(setup + report["seconds"], 2),
    }
    logger.info(
        "collaborative: %d epochs in %.0f s, best epoch %d, validation recall@%d %s",
        *(report["epochs"], report["seconds"], report["best_epoch"], RECALL_AT, report["best_recall@20"]),
    )
    return CollaborativeResult(embeddings, best[:num_users].cpu().numpy(), mask, report)


def _train(
    model: SymmetricLightGCN,
    adjacency: Tensor,
    users: IntArray,
    items: IntArray,
    sampler: NegativeSampler,
    cases: _ValidationCases,
    config: CollaborativeConfig,
    seed: int,
    checkpoint: EpochCheckpoint | None,
) -> tuple[Tensor, dict[str, Any]]:
    """Embeddings (users + items in the graph, dimension) of the best epoch, and the training's part of the report."""
    num_users = len(sampler.available)
    generator = np.random.default_rng(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate, fused=True)
    started = time.perf_counter()
    best = torch.empty(0)
    best_recall, best_epoch, done, stopped_by = -1.0, 0, 0, "epochs"
    curve: list[dict[str, float | int | None]] = []
    found = checkpoint.load() if checkpoint is not None else None
    if found is not None:
        with torch.no_grad():
            model.embedding.weight.copy_(found.tensors["weight"])
        restore_optimizer(optimizer, under("optimizer", found.tensors))
        generator.bit_generator.state = found.values["generator"]
        best = found.tensors["best"].to(adjacency.device)
        best_recall, best_epoch, done, curve = (found.values[name] for name in ("best_recall", "best_epoch", "epoch", "curve"))
        started -= found.values["seconds"]

    def state() -> State:
        tensors = {"weight": model.embedding.weight, "best": best} | prefixed("optimizer", optimizer_tensors(optimizer))
        kept = {"best_recall": best_recall, "best_epoch": best_epoch, "epoch": epoch, "curve": curve}
        return State(tensors, kept | {"generator": generator.bit_generator.state, "seconds": time.perf_counter() - started})

    with tqdm(total=config.epochs, initial=done, desc="LightGCN", unit="epoch") as bar:
        for epoch in range(done + 1, config.epochs + 1):
            loss = _epoch(model, adjacency, optimizer, users, items, sampler, config, generator)
            if not np.isfinite(loss):
                raise CEMGError(f"collaborative: the loss is {loss} in epoch {epoch}; lower learning_rate ({config.learning_rate})")
            out_of_time = config.time_budget_s is not None and time.perf_counter() - started >= config.time_budget_s
            if epoch % config.eval_every == 0 or epoch == config.epochs or out_of_time:
                with torch.no_grad():
                    embeddings = model.get_embedding(adjacency)
                recall = cases.recall(embeddings[:num_users], embeddings[num_users:]) if cases.total else None
                curve.append({"epoch": epoch, "recall@20": recall, "loss": loss})
                if recall is None or recall > best_recall:
                    best, best_epoch = embeddings, epoch
                    best_recall = best_recall if recall is None else recall
            bar.update()
            bar.set_postfix({"loss": f"{loss:.4f}", "recall@20": "–" if best_recall < 0 else f"{best_recall:.4f}"})
            if out_of_time:
                stopped_by = "time_budget"
                break
            if cases.total and epoch - best_epoch >= config.patience * config.eval_every and epoch % config.eval_every == 0:
                stopped_by = "patience"
                break
            if checkpoint is not None and epoch < config.epochs:
                checkpoint.between_epochs(state)
    return best, {
        "epochs": epoch,
        "best_epoch": best_epoch,
        "best_recall@20": best_recall if cases.total else None,
        "validation_cases": cases.total,
        "stopped_by": stopped_by,
        "curve": curve,
        "seconds": time.perf_counter() - started,
    }


def _epoch(
    model: SymmetricLightGCN,
    adjacency: Tensor,
    optimizer: torch.optim.Optimizer,
    users: IntArray,
    items: IntArray,
    sampler: NegativeSampler,
    config: CollaborativeConfig,
    generator: np.random.Generator,
) -> float:
    """One pass over the training pairs in random order, a fresh negative for each; the mean loss. A step propagates the whole graph."""
    order = generator.permutation(len(users))
    negatives = sampler(users[order], generator)
    num_users = len(sampler.available)
    nodes = torch.from_numpy(np.stack([users[order], items[order] + num_users, negatives + num_users])).to(adjacency.device)
    objective = BPRLoss(config.weight_decay)
    total = torch.zeros((), device=adjacency.device)
    for batch in nodes.split(min(config.batch_size, -(-len(users) // LEAST_STEPS_PER_EPOCH)), dim=1):
        # F.embedding, because its backward adds up repeated rows in a fixed order.
        user, item, negative = F.embedding(batch, model.get_embedding(adjacency))
        loss = objective((user * item).sum(-1), (user * negative).sum(-1), F.embedding(batch, model.embedding.weight))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.detach() * batch.shape[1]
    return float(total) / len(users)


def _validation_cases(dataset: PreparedDataset, training: Ragged, graph_item: IntArray) -> _ValidationCases:
    cases = dataset.evaluation_cases("validation")
    targets = graph_item[cases.targets]
    known = targets >= 0
    return _ValidationCases(cases.users[known], targets[known], training, len(cases))


def _multiply(adjacency: Tensor, x: Tensor) -> Tensor:
    if adjacency.is_cuda:
        return adjacency @ x
    return torch.sparse.mm(adjacency, x, "sum")  # the kernel with a reduction is about twice as fast as MKL's product
