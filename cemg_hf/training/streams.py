"""Code streams of MSCGRec (arXiv 2602.03713): every modality is quantised by itself, and an item has one code per modality.

Other than in the paper: the last level, which separates the items that share all codes before it, is a level of the residual quantiser
like the others, not a number. Within a crowded branch the empty leaves take over: items that share a leaf are assigned, together and at
the least cost, to the leaves of the branch, and what a full branch cannot hold goes to the nearest one with room (`assign_unique_codes`).
That holds for every stream, so any of them can be written. Images have the vectors of the `encode` stage, not those of RQ-DINO.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..artefacts import Manifest, fingerprint_path, is_current, write_folder, write_json
from ..errors import CEMGError
from ..features.store import MODALITIES, FeatureStore, ModalityFeatures
from ..models.cemg.assignment_cemg import assign_unique_codes, collision_rate
from ..models.cemg.modeling_rqvae import CEMGRQVAE, ContentHead
from ..models.mscgrec import MSCGRecTokenizer, StreamQuantisers
from ..models.mscgrec.quantisers_mscgrec import head_of
from .content_head import train_content_head
from .quantise import FeatureBatches, level_report, projection_tensors, quantise
from .tokenizer_config import TokenizerTrainingConfig
from .tokenizer_training import seeded, train_rqvae

logger = logging.getLogger(__name__)

CODEBOOKS_NAME = "codebooks.safetensors"
REPORT_NAME = "tokenizer_report.json"


@dataclass
class StreamsConfig:
    """Streams of codes in the place of one fused code per item; each is made as the `tokenize` section says."""

    modalities: list[str] = field(
        default_factory=lambda: ["collaborative", "text", "image"],
        metadata={"help": "Modalities with a code stream each; those that the features do not hold are left out."},
    )
    decoded: str = field(default="collaborative", metadata={"help": "The stream that the decoder writes."})
    dropout: float = field(
        default=0.2, metadata={"help": "Share of the streams of history items that training does not show, never all of an item's."}
    )
    dual_positions: bool = field(
        default=True, metadata={"help": "Relative positions by items and inside an item; false: T5's own, by tokens."}
    )

    def __post_init__(self) -> None:
        unknown = [name for name in self.modalities if name not in MODALITIES]
        if unknown or not self.modalities or len(set(self.modalities)) < len(self.modalities):
            raise CEMGError(f"streams.modalities = {self.modalities}: name one or more of {', '.join(MODALITIES)}, each once")
        if self.decoded not in self.modalities:
            raise CEMGError(f"streams.decoded: {self.decoded!r} has no stream; choose one of {', '.join(self.modalities)}")
        if not 0 <= self.dropout < 1:
            raise CEMGError(f"streams.dropout: must lie in [0, 1), got {self.dropout}")


def tokenize_streams(streams: StreamsConfig, config: TokenizerTrainingConfig, features: str | Path, output: str | Path, seed: int) -> Path:
    """Quantise every modality of a feature folder by itself and write the tokenizer and its report; skipped when that is current.

    What the stream that is written is called, and the other settings of `streams` that only training reads, do not change the output.

    Args:
        streams: which modalities.
        config: settings of each quantiser; those of fusion and of several modalities are not looked at.
        features: folder written by `encode`.
        output: tokenizer folder to write; `codebooks.safetensors` holds the code vectors behind the streams.
        seed: seed of initialisation, k-means and sample order.

    Raises:
        CEMGError: features without the stream to write, or settings that do not fit.
    """
    output = Path(output)
    if config.identifiers > 1 or config.start_from:
        name = "identifiers" if config.identifiers > 1 else "start_from"
        raise CEMGError(f"tokenize.{name}: code streams are made anew and have one code per item each; leave it out")
    settings = asdict(config) | {"streams": streams.modalities}
    manifest = Manifest("tokenize", settings, {"features": fingerprint_path(features)}, seed)
    if is_current(output, manifest):
        logger.info("tokenize: %s is up to date", output)
        return output
    started = time.perf_counter()
    store = FeatureStore.load(features)
    names = _present(streams, store, features)
    codes, mask, networks = [], [], {}
    report: dict[str, Any] = {"items": len(store.item_ids), "streams": {}}
    for name in names:
        found, network, about = stream_codes(name, store.modalities[name], config, seed)
        codes.append(found)
        mask.append(torch.from_numpy(np.array(store.modalities[name].mask)))
        networks[name], report["streams"][name] = network, about
        logger.info(
            "tokenize: %s, %.2f %% of items share the codes before the last level", name, 100 * about["collision_rate_before_last_level"]
        )
    head, report["content_head"] = content_head(store, names, config, seed)
    tokenizer = MSCGRecTokenizer(
        item_ids=store.item_ids,
        stream_codes=torch.stack(codes, dim=1),
        stream_mask=torch.stack(mask, dim=1),
        streams=names,
        num_levels=config.num_levels,
        codebook_size=config.codebook_size,
        quantisers=StreamQuantisers(networks, head),
        encoders={name: dict(store.modalities[name].encoder) for name in names},
        projections=projection_tensors(store, names),
    )
    report["items_without_any_modality"] = int((~tokenizer.stream_mask.any(dim=1)).sum())
    with write_folder(output, manifest, started) as scratch:
        tokenizer.save_pretrained(scratch)
        save_file({name: network.codebooks.detach().contiguous() for name, network in networks.items()}, scratch / CODEBOOKS_NAME)
        write_json(scratch / REPORT_NAME, report)
    return output


def stream_codes(
    name: str, features: ModalityFeatures, config: TokenizerTrainingConfig, seed: int
) -> tuple[Tensor, CEMGRQVAE, dict[str, Any]]:
    """(N, M) unique codes of one modality, the network behind them, and a report on them.

    The quantiser learns from the items that have the modality, which are assigned first. The others, whose codes no history shows, get
    free ones, so that a decoder can write them too.
    """
    given = np.array(features.mask)
    present, absent = (torch.from_numpy(np.flatnonzero(rows)) for rows in (given, ~given))
    alone = replace(config, modalities=[name], lambda_align=0.0, modality_dropout=0.0, content_head_dim=0, content_vector_dim=0)
    shown = {name: np.asarray(features.vectors[present.numpy()])}
    rqvae, quality = train_rqvae(shown, {name: np.ones(len(present), dtype=bool)}, alone, seed)
    nearest = quantise(rqvae, FeatureBatches({name: features.vectors}, {name: given}))
    assert nearest.latent is not None
    codes = torch.zeros_like(nearest.codes)
    codes[present], assignment = assign_unique_codes(nearest.codes[present], nearest.latent[present], rqvae.codebooks)
    codes[absent], _ = assign_unique_codes(nearest.codes[absent], nearest.latent[absent], rqvae.codebooks, taken=codes[present])
    kept = {key: quality[key] for key in ("reconstruction_error", "pca_error", "seconds")}
    return (
        codes,
        rqvae,
        {
            "present": len(present),
            "masked": len(absent),
            "levels": [level_report(column, config.codebook_size) for column in nearest.codes[present].T],
            "collision_rate_before_last_level": collision_rate(nearest.codes[present, :-1]),
            **asdict(assignment),
            **kept,
        },
    )


def content_head(
    store: FeatureStore, names: Sequence[str], config: TokenizerTrainingConfig, seed: int
) -> tuple[ContentHead | None, dict[str, Any] | None]:
    """The head that predicts the collaborative vector of a new item from its content, and a report on it (see `train_content_head`).

    None where `tokenize.content_head_dim` is 0, there is no collaborative stream, or no other one.
    """
    with seeded(seed, torch.device("cpu")):
        head = head_of({name: store.modalities[name].vectors.shape[1] for name in names}, config.content_head_dim)
        if head is None:
            return None, None
        chosen = {name: store.modalities[name] for name in names}
        data = FeatureBatches({name: one.vectors for name, one in chosen.items()}, {name: one.mask for name, one in chosen.items()})
        return head, train_content_head(head, data)


def load_codebooks(folder: str | Path, streams: Sequence[str]) -> list[Tensor] | None:
    """Code vectors (M, K, D) behind each of the streams of a tokenizer folder; None where it holds none."""
    path = Path(folder) / CODEBOOKS_NAME
    if not path.is_file():
        return None
    found = load_file(path)
    return [found[name] for name in streams]


def _present(streams: StreamsConfig, store: FeatureStore, features: str | Path) -> list[str]:
    """The modalities that the features hold, in the order of the configuration."""
    names = [name for name in streams.modalities if name in store.modalities]
    left_out = [name for name in streams.modalities if name not in names]
    if left_out:
        logger.warning("tokenize: no item has %s; there is no such stream", " or ".join(left_out))
    if streams.decoded not in names:
        raise CEMGError(
            f"{features}: no {streams.decoded} vectors, so there are no codes to write; encode them, or set streams.decoded to one of "
            f"{', '.join(names) or 'what `cemg encode` writes'}"
        )
    return names
