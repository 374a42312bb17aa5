"""Text of items, and pretrained transformers that encode it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from sklearn.feature_extraction import FeatureHasher
from sklearn.preprocessing import normalize
from tqdm import tqdm
from transformers import AutoConfig, AutoModel, AutoTokenizer
from transformers.utils import cached_file

from ..artefacts import fingerprint
from ..errors import CEMGError
from ..settings import expand_path
from .cache import Batches, VectorCache, content_key, default_cache_folder
from .encoder import RawFeatures, resolve_device
from .projection import ROWS_AT_ONCE
from .store import scratch_array

TEXT_COLUMNS = ("title", "brand", "categories", "description")
POOLINGS = ("cls", "mean")
TFIDF = "tfidf"
HASHED_PLACES = 8
CODE_VERSION = "1"  # raise when the same weights and settings start to give other vectors
WEIGHT_PATTERNS = ("*.safetensors", "*.bin")
TOKENIZER_PATTERNS = ("config.json", "tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "*.model")


@dataclass
class TextConfig:
    """How item texts become raw vectors."""

    encoder: str = field(
        default="google-bert/bert-base-uncased",
        metadata={"help": 'Hub name or folder of a transformers encoder (`~`, `$VARIABLES` allowed), or "tfidf", which needs no download.'},
    )
    revision: str = field(default="main", metadata={"help": "Branch, tag or commit of an encoder from the Hub."})
    pooling: str = field(
        default="cls", metadata={"help": '"cls": the last hidden state of the [CLS] token (the paper); "mean": mean over tokens.'}
    )
    max_length: int = field(default=256, metadata={"help": "Tokens of a text that the transformer reads, special tokens included."})
    batch_size: int = field(default=64, metadata={"help": "Texts per forward pass."})
    attributes: int = field(
        default=0,
        metadata={"help": "Dimensions of hashed brands, and as many of hashed categories, beside a transformer's vector; 0: none."},
    )
    device: str = field(default="auto", metadata={"help": 'Where the transformer runs: "auto", "cpu", "cuda", "cuda:1" …'})
    components: int = field(default=256, metadata={"help": 'Components that truncated SVD keeps of TF-IDF ("tfidf" only).'})
    max_terms: int = field(default=50_000, metadata={"help": 'Most frequent words and word pairs that TF-IDF knows ("tfidf" only).'})

    def check(self) -> None:
        """Raise CEMGError for a setting that cannot work."""
        if self.pooling not in POOLINGS:
            raise CEMGError(f"text.pooling = {self.pooling!r}: choose one of {', '.join(POOLINGS)}")
        for name in ("max_length", "batch_size", "components", "max_terms"):
            if getattr(self, name) < 1:
                raise CEMGError(f"text.{name} = {getattr(self, name)}: must be at least 1")
        if self.attributes < 0:
            raise CEMGError(f"text.attributes = {self.attributes}: must be at least 0")


def item_texts(items: pl.DataFrame) -> pl.Series:
    """One text per item: title, brand, categories and description joined by ". ", white space collapsed; null where all are empty."""
    parts = []
    for column in (name for name in TEXT_COLUMNS if name in items.columns):
        value = pl.col(column)
        if isinstance(items.schema[column], pl.List | pl.Array):
            value = value.cast(pl.List(pl.String)).list.drop_nulls().list.join(", ")
        cleaned = value.cast(pl.String).str.replace_all(r"\s+", " ").str.strip_chars().str.strip_chars_end(".")
        parts.append(pl.when(cleaned != "").then(cleaned))
    if not parts:
        return pl.Series("text", [None] * items.height, dtype=pl.String)
    joined = pl.concat_str(parts, separator=". ", ignore_nulls=True)
    return items.select(pl.when(joined != "").then(joined).alias("text"))["text"]


def attribute_vectors(items: pl.DataFrame, size: int) -> np.ndarray:
    """(N, 2 · size) float32: hashed brand and hashed categories of each item, each of length 1 (0 where there is none).

    What a sentence encoder blurs, that two items are of one brand, is exact here. A value becomes a few ±1 in hashed places (the hashing
    trick, Weinberger et al., 2009), so that nothing has to be learned and values never seen before have vectors too.
    """
    hasher = FeatureHasher(size, input_type="string", dtype=np.float32)
    blocks = []
    for column in ("brand", "categories"):
        values = items[column].to_list() if column in items.columns else [None] * items.height
        lists = [[value] if isinstance(value, str) else list(value or []) for value in values]
        words = ([f"{value}#{copy}" for value in row if value for copy in range(HASHED_PLACES)] for row in lists)
        blocks.append(normalize(hasher.transform(words)).toarray())
    return np.concatenate(blocks, axis=1)


class TransformerTextEncoder:
    """A transformers encoder with [CLS] or mean pooling, its vectors cached by content."""

    modality = "text"
    learns = False

    def __init__(self, config: TextConfig, cache_folder: Path | None = None) -> None:
        """Finds the encoder (folder or Hub) and reads its configuration; the weights wait until a text has to be encoded."""
        config.check()
        self.config = config
        self.cache_folder = cache_folder or default_cache_folder()
        self.source = expand_path(config.encoder, "text.encoder")
        self.is_folder = Path(self.source).is_dir()
        if not self.is_folder and self.source.startswith(("/", ".")):
            raise CEMGError(f'text.encoder = {config.encoder!r}: no folder {self.source}; give a Hub name, an existing folder or "tfidf"')
        try:
            # The commit, not the branch, is what the vectors depend on.
            self.revision = None if self.is_folder else _commit_of(self.source, config.revision)
            self.model_config = AutoConfig.from_pretrained(self.source, **self._pinned)
        except (OSError, ValueError) as error:
            raise CEMGError(
                f"text.encoder = {config.encoder!r}: no transformers encoder found there ({_first_line(error)}); "
                'give a folder, or "tfidf" to work offline'
            ) from error

    @property
    def _pinned(self) -> dict[str, str]:
        return {} if self.revision is None else {"revision": self.revision}

    @property
    def dimension(self) -> int:
        return int(self.model_config.hidden_size) + 2 * self.config.attributes

    @cached_property
    def fingerprint(self) -> str:
        attributes = (f"attributes {self.config.attributes}",) if self.config.attributes else ()
        return fingerprint(self._network_fingerprint, *attributes) if attributes else self._network_fingerprint

    @cached_property
    def _network_fingerprint(self) -> str:
        weights = _fingerprint_folder(Path(self.source)) if self.revision is None else f"{self.source}@{self.revision}"
        return fingerprint("text", CODE_VERSION, weights, self.config.pooling, str(self.config.max_length))

    def fit(self, items: pl.DataFrame, seed: int) -> None:
        """Nothing to learn: the weights are pretrained."""

    def describe(self) -> dict[str, Any]:
        names = ("encoder", "revision", "pooling", "max_length", "attributes")
        return {
            "modality": self.modality,
            "kind": "transformers",
            "name": f"{self.config.encoder} ({self.config.pooling})",
            "settings": {name: getattr(self.config, name) for name in names},
            "dimension": self.dimension,
            "fingerprint": self.fingerprint,
            "files": [],
        }

    def save(self, folder: Path) -> None:
        """Nothing to write: the weights are where they came from."""

    def encode(self, items: pl.DataFrame, base: Path | None = None) -> RawFeatures:
        """Raw vectors (N, hidden size), behind them hashed attributes where they are asked for; items without text are masked."""
        texts = item_texts(items)
        rows = texts.is_not_null().arg_true().to_numpy().astype(np.int64)
        present = texts.drop_nulls()
        keys = np.array([content_key(text) for text in present.to_list()], dtype="S32")
        cost = present.str.len_chars().to_numpy().astype(np.int64)
        cache = VectorCache(self.cache_folder / self._network_fingerprint)
        size = int(self.model_config.hidden_size)
        vectors, _ = cache.fill(keys, cost, self.config.batch_size, size, lambda batches: self._compute(present, batches))
        if self.config.attributes:
            vectors = self._beside_attributes(vectors, items[rows], cache.folder)
        return RawFeatures.scattered(items.height, rows, vectors)

    def _beside_attributes(self, vectors: np.ndarray, items: pl.DataFrame, folder: Path) -> np.ndarray:
        """Rows of `vectors` at length 1 and behind them the items' attributes; where large, in a temporary file in `folder`."""
        wide = scratch_array((len(vectors), self.dimension), folder=folder)
        for start in range(0, len(vectors), ROWS_AT_ONCE):
            part = slice(start, start + ROWS_AT_ONCE)
            wide[part] = np.concatenate([normalize(vectors[part]), attribute_vectors(items[part], self.config.attributes)], axis=1)
        return wide

    def _compute(self, texts: pl.Series, batches: Batches) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        if not batches:
            return
        device = resolve_device(self.config.device)
        tokenizer, model = self._load(device)
        longest = [length for length in (tokenizer.model_max_length, getattr(self.model_config, "max_position_embeddings", None)) if length]
        max_length = min([self.config.max_length, *longest])
        with tqdm(total=sum(map(len, batches)), desc=f"text {self.config.encoder}", unit="item") as bar:
            for rows in batches:
                tokens = tokenizer(
                    texts.gather(rows).to_list(), padding=True, truncation=True, max_length=max_length, return_tensors="pt"
                ).to(device)
                with torch.inference_mode():
                    hidden = model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]).last_hidden_state.float()
                    pooled = _pool(hidden, tokens["input_ids"], tokens["attention_mask"], self.config.pooling, tokenizer.cls_token_id)
                yield rows, pooled.cpu().numpy()
                bar.update(len(rows))

    def _load(self, device: torch.device) -> tuple[Any, Any]:
        try:
            tokenizer = AutoTokenizer.from_pretrained(self.source, **self._pinned)
            model = AutoModel.from_pretrained(self.source, dtype=torch.float32, **self._pinned)
        except (OSError, ValueError) as error:
            raise CEMGError(
                f"text.encoder = {self.config.encoder!r}: cannot be loaded ({_first_line(error)}); check that the folder is complete"
            ) from error
        if self.model_config.is_encoder_decoder:
            model = model.get_encoder()
        if self.config.pooling == "cls" and tokenizer.cls_token_id is None:
            raise CEMGError(f"text.pooling = 'cls': the tokenizer of {self.config.encoder!r} has no [CLS] token; use text.pooling = 'mean'")
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        tokenizer.padding_side = "right"
        return tokenizer, model.to(device).eval()


def _pool(hidden: torch.Tensor, input_ids: torch.Tensor, attention: torch.Tensor, pooling: str, cls_token_id: int) -> torch.Tensor:
    """One vector (B, D) of the hidden states (B, T, D)."""
    if pooling == "mean":
        weight = attention.unsqueeze(-1).to(hidden.dtype)
        return (hidden * weight).sum(1) / weight.sum(1).clamp_min(1.0)
    position = input_ids.eq(cls_token_id).int().argmax(1)  # not every tokenizer puts [CLS] first
    return hidden[torch.arange(len(hidden), device=hidden.device), position]


def _fingerprint_folder(folder: Path) -> str:
    """Fingerprint of the files of a model folder that its vectors depend on (a README may change)."""
    weights = next((found for pattern in WEIGHT_PATTERNS if (found := sorted(folder.glob(pattern)))), [])
    if not weights:
        raise CEMGError(f"text.encoder: {folder} holds no weights ({' or '.join(WEIGHT_PATTERNS)}); point to a complete model folder")
    others = {file for pattern in TOKENIZER_PATTERNS for file in folder.glob(pattern)}
    return fingerprint(*(part for file in sorted({*weights, *others}) for part in (file.name, file.read_bytes())))


def _commit_of(name: str, revision: str) -> str:
    """Commit of a Hub model: `cached_file` gives …/snapshots/<commit>/config.json."""
    found = cached_file(name, "config.json", revision=revision)
    if found is None:
        raise OSError(f"{name} has no config.json")
    return Path(found).parent.name


def _first_line(error: Exception) -> str:
    return json.dumps(str(error).strip().split("\n", 1)[0][:200], ensure_ascii=False).strip('"')
