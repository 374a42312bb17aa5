"""Code streams of MSCGRec (arXiv 2602.03713): every modality is quantised by itself, and an item has one code per modality.

Other than in the paper: the last level, which separates the items that share all codes before it, is a level of the residual quantiser
like the others, not a number. Within a crowded branch the empty leaves take over: items that share a leaf are assigned, together and at
the least cost, to the leaves of the branch, and what a full branch cannot hold goes to the nearest one with room (`assign_unique_codes`).
That holds for every stream, so any of them can be written. Images have the vectors of the `encode` stage, or, with `image_codes`, the codes
of RQ-DINO.
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
from ..models.cemg.assignment_cemg import AssignmentReport, assign_unique_codes, collision_rate
from ..models.cemg.modeling_rqvae import CEMGRQVAE, ContentHead
from ..models.mscgrec import MSCGRecTokenizer, StreamQuantisers
from ..models.mscgrec.quantisers_mscgrec import head_of
from ..settings import expand_path
from .content_head import train_content_head
from .quantise import FeatureBatches, level_report, projection_tensors, quantise
from .rq_dino_codes import PictureCodes
from .tokenizer_config import TokenizerTrainingConfig
from .tokenizer_training import seeded, train_rqvae

logger = logging.getLogger(__name__)

IMAGE = "image"
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
    image_codes: str | None = field(
        default=None,
        metadata={
            "help": "Folder written by `cemg rq-dino`, whose codes are the image stream (default: a quantiser of the image vectors)."
        },
    )
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
        if self.image_codes is not None and IMAGE not in self.modalities:
            raise CEMGError(
                f"streams.image_codes: {self.image_codes} are codes of pictures, which have no stream; add image to streams.modalities"
            )
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
    inputs = {"features": fingerprint_path(features)}
    coded: PictureCodes | None = None
    if streams.image_codes is not None:
        folder = expand_path(streams.image_codes, "streams.image_codes")
        coded = PictureCodes.load(folder)
        inputs["image_codes"] = fingerprint_path(folder)
    manifest = Manifest("tokenize", settings, inputs, seed)
    if is_current(output, manifest):
        logger.info("tokenize: %s is up to date", output)
        return output
    started = time.perf_counter()
    store = FeatureStore.load(features)
    available = [name for name, feature in store.modalities.items() if feature.mask.any()]
    names = _present(streams, available if coded is None else [*available, IMAGE], features)
    codes, mask, codebooks = [], [], {}
    networks: dict[str, CEMGRQVAE] = {}
    report: dict[str, Any] = {"items": len(store.item_ids), "streams": {}}
    for name in names:
        if name == IMAGE and coded is not None:
            pictures = coded.of_items(store.item_ids)
            found, codebooks[name], about = picture_stream(pictures, config)
            given = pictures.mask
        else:
            found, networks[name], about = stream_codes(name, store.modalities[name], config, seed)
            codebooks[name] = networks[name].codebooks.detach().contiguous()
            given = torch.from_numpy(np.array(store.modalities[name].mask))
        codes.append(found)
        mask.append(given)
        report["streams"][name] = about
        logger.info(
            "tokenize: %s, %.2f %% of items share the codes before the last level", name, 100 * about["collision_rate_before_last_level"]
        )
    quantisers = None
    if coded is None:  # RQ-DINO's network reads pictures, not vectors: it does not travel, and without it new items have no image codes
        head, report["content_head"] = content_head(store, names, config, seed)
        quantisers = StreamQuantisers(networks, head)
    tokenizer = MSCGRecTokenizer(
        item_ids=store.item_ids,
        stream_codes=torch.stack(codes, dim=1),
        stream_mask=torch.stack(mask, dim=1),
        streams=names,
        num_levels=config.num_levels,
        codebook_size=config.codebook_size,
        quantisers=quantisers,
        encoders={name: dict(store.modalities[name].encoder) for name in networks},
        projections=projection_tensors(store, list(networks)),
    )
    report["items_without_any_modality"] = int((~tokenizer.stream_mask.any(dim=1)).sum())
    with write_folder(output, manifest, started) as scratch:
        tokenizer.save_pretrained(scratch)
        save_file(codebooks, scratch / CODEBOOKS_NAME)
        write_json(scratch / REPORT_NAME, report)
    return output


def stream_codes(
    name: str, features: ModalityFeatures, config: TokenizerTrainingConfig, seed: int
) -> tuple[Tensor, CEMGRQVAE, dict[str, Any]]:
    """(N, M) unique codes of one modality, the network behind them, and a report on them.

    The quantiser learns from the items that have the modality.
    """
    given = np.array(features.mask)
    alone = replace(config, modalities=[name], lambda_align=0.0, modality_dropout=0.0, content_head_dim=0, content_vector_dim=0)
    shown = {name: np.asarray(features.vectors[np.flatnonzero(given)])}
    rqvae, quality = train_rqvae(shown, {name: np.ones(int(given.sum()), dtype=bool)}, alone, seed)
    nearest = quantise(rqvae, FeatureBatches({name: features.vectors}, {name: given}))
    assert nearest.latent is not None
    codes, about = _assigned(nearest.codes, nearest.latent, torch.from_numpy(given), rqvae.codebooks)
    return codes, rqvae, about | {key: quality[key] for key in ("reconstruction_error", "pca_error", "seconds")}


def picture_stream(pictures: PictureCodes, config: TokenizerTrainingConfig) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """The same as `stream_codes` where RQ-DINO has coded the pictures, with the code vectors (M, K, D) in the place of a network.

    Raises:
        CEMGError: codes of another length or size than those of the other streams.
    """
    levels, size, _ = pictures.codebooks.shape
    if (levels, size) != (config.num_levels, config.codebook_size):
        raise CEMGError(
            f"streams.image_codes: has {levels} levels of {size} codes, tokenize {config.num_levels} of {config.codebook_size}; "
            "streams have codes of one length: set tokenize.num_levels and codebook_size, or train RQ-DINO with these"
        )
    codes, about = _assigned(pictures.codes, pictures.latent, pictures.mask, pictures.codebooks)
    return codes, pictures.codebooks.contiguous(), about | {"source": "rq-dino"}


def unique_codes(nearest: Tensor, latent: Tensor, given: Tensor, codebooks: Tensor) -> tuple[Tensor, AssignmentReport]:
    """(N, M) codes of which no two are the same, from nearest ones.

    The items that have the modality, `given` (N,) bool, are assigned first. The others, whose codes no history shows, get free ones, so
    that a decoder can write them too. The report counts the former.
    """
    codes = torch.zeros_like(nearest)
    codes[given], assignment = assign_unique_codes(nearest[given], latent[given], codebooks)
    codes[~given], _ = assign_unique_codes(nearest[~given], latent[~given], codebooks, taken=codes[given])
    return codes, assignment


def _assigned(nearest: Tensor, latent: Tensor, given: Tensor, codebooks: Tensor) -> tuple[Tensor, dict[str, Any]]:
    """Unique codes and what the report of a stream says of them."""
    codes, assignment = unique_codes(nearest, latent, given, codebooks)
    return codes, {
        "present": int(given.sum()),
        "masked": int((~given).sum()),
        "levels": [level_report(column, codebooks.shape[1]) for column in nearest[given].T],
        "collision_rate_before_last_level": collision_rate(nearest[given, :-1]),
        **asdict(assignment),
    }


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
    """Code vectors (M, K, D) behind each of the streams of a tokenizer folder; None where it holds none.

    Raises:
        CEMGError: it holds some, but not of every stream, or not of the same M and K.
    """
    path = Path(folder) / CODEBOOKS_NAME
    if not path.is_file():
        return None
    found = load_file(path)
    missing = [name for name in streams if name not in found]
    if missing:
        raise CEMGError(f"{path}: no code vectors of {missing[0]}, only of {', '.join(sorted(found))}; run `cemg tokenize` again")
    sizes = {name: "×".join(map(str, found[name].shape[:2])) for name in streams}
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise CEMGError(f"{path}: streams have the same levels and codes per level, these do not ({listed}); run `cemg tokenize` again")
    return [found[name] for name in streams]


def _present(streams: StreamsConfig, available: Sequence[str], features: str | Path) -> list[str]:
    """The modalities that are available, in the order of the configuration."""
    names = [name for name in streams.modalities if name in available]
    left_out = [name for name in streams.modalities if name not in names]
    if left_out:
        logger.warning("tokenize: no item has %s; there is no such stream", " or ".join(left_out))
    if streams.decoded not in names:
        raise CEMGError(
            f"{features}: no {streams.decoded} vectors, so there are no codes to write; encode them, or set streams.decoded to one of "
            f"{', '.join(names) or 'what `cemg encode` writes'}"
        )
    return names
