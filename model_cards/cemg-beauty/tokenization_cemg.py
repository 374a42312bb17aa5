"""The item tokenizer: item ids ↔ code tokens, the catalogue, and the RQ-VAE that gave the items their codes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import BatchEncoding, PreTrainedTokenizer

from .assignment_cemg import assign_unique_codes
from .description_cemg import CODE_TOKEN, BranchDescription, describe_branch, parse_prefix
from .modeling_rqvae import CEMGRQVAE, CEMGRQVAEConfig
from .trie_cemg import ItemTrie

VOCAB_FILES_NAMES = {
    "item_ids_file": "item_ids.json",
    "item_codes_file": "item_codes.safetensors",
    "rqvae_config_file": "rqvae_config.json",
    "rqvae_file": "rqvae.safetensors",
}
FORMAT = 1  # of the files; a change that older code would misread raises it
ENCODED_AT_ONCE = 4096  # new items per pass through the RQ-VAE
OF_LOADING = ("is_local", "local_files_only")  # said by from_pretrained about itself; what is saved must not depend on it


class AddedItems(NamedTuple):
    """What `CEMGTokenizer.add_items` did with n items.

    item_codes (n, M) int64: their codes. moved: how many of them are not at their nearest code, because another item holds it.
    spilled: how many of those also left the (M−1)-prefix of that code, because it was full. collision_rate: share of the n whose
    nearest code another item has, new or old.
    """

    item_codes: Tensor
    moved: int
    spilled: int
    collision_rate: float


@dataclass(frozen=True)
class Catalogue:
    """Everything that changes when items come or go; replaced as a whole, so that a reader sees the old catalogue or the new one."""

    item_ids: list[str]
    item_codes: Tensor
    item_tokens: Tensor
    new_items: Tensor
    item_vectors: Tensor | None
    index: dict[str, int]
    trie: ItemTrie
    fingerprint: str


class CEMGTokenizer(PreTrainedTokenizer):
    r"""Writes a history of items as code tokens, `<s><a_12><b_7><c_200><d_3>…`, M tokens per item.

    A history is a list of item ids in chronological order; a batch is a list of histories.

        >>> tokenizer(["B004756YJA", "B004ZT0SSG"])["input_ids"]          # one history
        >>> tokenizer([["B004756YJA"], []], padding=True, return_tensors="pt")   # a batch, the second user is new

    Args:
        item_ids (list of `str`): the catalogue, in the order of `item_codes`.
        item_codes (`Tensor` (N, M)): raw codes 0 … K−1, unique rows.
        num_levels, codebook_size (`int`): M and K.
        base_vocab_size (`int`): ids that belong to the backbone (`<pad>` 0, `</s>` 1, and a pretrained T5's text tokens).
        max_history (`int`): a history is cut to its last items.
        rqvae (`CEMGRQVAE`, *optional*): the frozen network behind the codes.
        encoders (mapping, *optional*): which encoders made its inputs, with their fingerprints.
        projections (mapping, *optional*): per modality the PCA that leads from raw encoder vectors to its inputs, e = s · C (r − μ):
            `mean` μ, `components` C and `scale` s.
        new_items (`Tensor` (N,) bool, *optional*): which items came after training; none by default.
        item_vectors (`Tensor` (N, V), *optional*): content vectors (`CEMGRQVAE.content_vectors`), by which new items are ranked.
        trained_fingerprint (`str`, *optional*): fingerprint of the catalogue as it was before items came or went (default: as it is).
        has_rqvae (`bool`, *optional*): whether the saved tokenizer had an RQ-VAE; one whose files did not arrive is an error then.
        format_version (`int`): format of the files these arguments come from.

    Attributes:
        item_ids (list of `str`), item_codes (`Tensor` (N, M) int64), item_tokens (their token ids), new_items (`Tensor` (N,) bool),
        item_vectors (`Tensor` (N, V) or None), trie (`ItemTrie`), catalogue_fingerprint (`str`): replaced together by `add_items` and
            `remove_items`.
        trained_fingerprint (`str`): what a model's `catalogue_fingerprint` is compared with.

    Raises:
        ValueError: ids that repeat, codes that do not fit the geometry, or files that do not belong together.
    """

    vocab_files_names = VOCAB_FILES_NAMES
    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012 - as declared by the base class

    def __init__(
        self,
        item_ids_file: str | None = None,
        item_codes_file: str | None = None,
        rqvae_config_file: str | None = None,
        rqvae_file: str | None = None,
        *,
        item_ids: Sequence[str] | None = None,
        item_codes: Tensor | None = None,
        num_levels: int = 4,
        codebook_size: int = 256,
        base_vocab_size: int = 2,
        max_history: int = 20,
        rqvae: CEMGRQVAE | None = None,
        encoders: Mapping[str, Any] | None = None,
        projections: Mapping[str, Mapping[str, Tensor]] | None = None,
        new_items: Tensor | None = None,
        item_vectors: Tensor | None = None,
        trained_fingerprint: str | None = None,
        has_rqvae: bool = False,
        format_version: int = FORMAT,
        **kwargs: Any,
    ) -> None:
        _check_format(format_version)
        if item_ids is None:
            if item_ids_file is None or item_codes_file is None:
                raise ValueError("a CEMGTokenizer needs a catalogue: give item_ids and item_codes, or load a saved tokenizer folder")
            item_ids = json.loads(Path(item_ids_file).read_text(encoding="utf-8"))
            stored = load_tensors(item_codes_file)
            if "item_codes" not in stored:
                raise ValueError(f"{item_codes_file}: holds no tensor item_codes; save the tokenizer again")
            item_codes, new_items, item_vectors = stored["item_codes"].long(), stored.get("new_items"), stored.get("item_vectors")
        if rqvae_file is not None and rqvae_config_file is not None and rqvae is None:
            described, tensors, projections = load_network(rqvae_config_file, rqvae_file)
            encoders = described["encoders"]
            rqvae = CEMGRQVAE(CEMGRQVAEConfig.from_dict(described["rqvae"]))
            rqvae.load_state_dict(tensors)
            rqvae.eval()
        if rqvae is None and (has_rqvae or rqvae_file is not None or rqvae_config_file is not None):
            files = ", ".join(VOCAB_FILES_NAMES[key] for key in ("rqvae_config_file", "rqvae_file"))
            raise ValueError(f"the tokenizer was saved with an RQ-VAE, and its files ({files}) did not all arrive; load it again")
        if item_codes is None or tuple(item_codes.shape) != (len(item_ids), num_levels):
            found = None if item_codes is None else tuple(item_codes.shape)
            raise ValueError(f"item_codes must be {len(item_ids)} × {num_levels} (items × levels), got {found}")
        if not 1 <= num_levels <= 26:
            raise ValueError(f"num_levels must be 1 … 26 (levels are lettered), got {num_levels}")
        if max_history < 1:
            raise ValueError(f"max_history must be ≥ 1, got {max_history}")
        if rqvae is None and (encoders or projections):
            raise ValueError("encoders and projections describe what goes into the RQ-VAE; give rqvae too")
        if new_items is not None and (tuple(new_items.shape) != (len(item_ids),) or new_items.dtype != torch.bool):
            raise ValueError(f"new_items must be {len(item_ids)} booleans, got {tuple(new_items.shape)} of {new_items.dtype}")
        if item_vectors is not None and (item_vectors.ndim != 2 or len(item_vectors) != len(item_ids)):
            raise ValueError(f"item_vectors must be {len(item_ids)} rows, got {tuple(item_vectors.shape)}")
        self.num_levels = num_levels
        self.codebook_size = codebook_size
        self.base_vocab_size = base_vocab_size
        self.max_history = max_history
        self.rqvae = rqvae
        self.encoders = dict(encoders or {})
        self.projections = {name: dict(parts) for name, parts in (projections or {}).items()}
        self.first_code_id = base_vocab_size + 1
        self._level_starts = self.first_code_id + codebook_size * torch.arange(num_levels)
        if new_items is None:
            new_items = torch.zeros(len(item_ids), dtype=torch.bool)
        self._catalogue = self._new_catalogue(list(item_ids), item_codes.long().cpu().contiguous(), new_items.cpu(), item_vectors)
        self.trained_fingerprint = trained_fingerprint or self._catalogue.fingerprint
        self._token_ids = self._vocabulary()
        self._tokens = {index: token for token, index in self._token_ids.items()}
        kwargs = {name: value for name, value in kwargs.items() if name not in OF_LOADING}
        specials = {"pad_token": "<pad>", "eos_token": "</s>", "bos_token": "<s>"}
        super().__init__(
            num_levels=num_levels,
            codebook_size=codebook_size,
            base_vocab_size=base_vocab_size,
            max_history=max_history,
            trained_fingerprint=self.trained_fingerprint,
            has_rqvae=rqvae is not None,
            format_version=FORMAT,
            **{**specials, "model_max_length": 1 + self.history_tokens.shape[1] * max_history, **kwargs},
        )

    def geometry(self) -> dict[str, Any]:
        """The settings a model must share."""
        return {
            "num_levels": self.num_levels,
            "codebook_size": self.codebook_size,
            "base_vocab_size": self.base_vocab_size,
            "max_history": self.max_history,
        }

    def with_layout(self, *, base_vocab_size: int, max_history: int) -> CEMGTokenizer:
        """The same catalogue and codes for another backbone or history length, as the catalogue that a model is about to be trained on:
        no item of it is new.
        """
        return CEMGTokenizer(
            item_ids=self.item_ids,
            item_codes=self.item_codes,
            num_levels=self.num_levels,
            codebook_size=self.codebook_size,
            base_vocab_size=base_vocab_size,
            max_history=max_history,
            rqvae=self.rqvae,
            encoders=self.encoders,
            projections=self.projections,
            item_vectors=self.item_vectors,
            padding_side=self.padding_side,
        )

    # ---- the catalogue ------------------------------------------------------------------------------------------------------

    @property
    def item_ids(self) -> list[str]:
        return self._catalogue.item_ids

    @property
    def item_codes(self) -> Tensor:
        return self._catalogue.item_codes

    @property
    def item_tokens(self) -> Tensor:
        return self._catalogue.item_tokens

    @property
    def history_tokens(self) -> Tensor:
        """(N, T) token ids that each item is written with in a history."""
        return self._catalogue.item_tokens

    @property
    def new_items(self) -> Tensor:
        return self._catalogue.new_items

    @property
    def item_vectors(self) -> Tensor | None:
        return self._catalogue.item_vectors

    @property
    def trie(self) -> ItemTrie:
        return self._catalogue.trie

    @property
    def catalogue_fingerprint(self) -> str:
        return self._catalogue.fingerprint

    def _new_catalogue(self, item_ids: list[str], item_codes: Tensor, new_items: Tensor, item_vectors: Tensor | None) -> Catalogue:
        """Raises ValueError for ids that are no strings or repeat, and for codes that repeat or do not fit the geometry."""
        _check_ids(item_ids)
        index = dict(zip(item_ids, range(len(item_ids)), strict=True))
        if len(index) != len(item_ids):
            raise ValueError(f"item ids must be unique: {len(item_ids) - len(index)} of {len(item_ids)} are repeated")
        trie = ItemTrie(item_codes, self.codebook_size)
        digest = hashlib.sha256(json.dumps([item_ids, self.num_levels, self.codebook_size]).encode())
        digest.update(item_codes.numpy().astype("<i8").tobytes())
        tokens = item_codes + self._level_starts
        return Catalogue(item_ids, item_codes, tokens, new_items, item_vectors, index, trie, digest.hexdigest())

    def add_items(
        self,
        item_ids: Sequence[str],
        vectors: Mapping[str, Any],
        masks: Mapping[str, Any] | None = None,
        *,
        collaborative: str = "predicted",
    ) -> AddedItems:
        """Give new items codes of their own, without retraining and without a change to any code there is.

        An item comes to the free code nearest to its own nearest-code assignment (see `assign_unique_codes`). A model that holds
        this tokenizer recommends the items from then on. The catalogue changes in one step, but a `recommend` that is under way in
        another thread may read parts of both: change it between requests.

        Args:
            item_ids: n ids that are not in the catalogue.
            vectors: modality -> (n, D_m) tensor or array, as the encoders named in `encoders` give them; `projections` lead from
                there to the RQ-VAE's inputs (a modality without one is taken as it is). What is left out counts as missing.
            masks: modality -> (n,) booleans, True where the vector is real; left out means real for all items.
            collaborative: an item without a collaborative vector gets the one the RQ-VAE's content head "predicted" (nothing, where
                it has no head), or stays "masked".

        Returns:
            The new items' codes, and how many of them lie beside their nearest code.

        Raises:
            ValueError: no RQ-VAE, ids that exist or repeat, vectors that do not fit or are not finite, an item without any
                modality, or more items than codes. The tokenizer is left as it was.
        """
        sizes = self._input_sizes()
        item_ids = self._check_new_ids(item_ids)
        check_collaborative(collaborative)
        before = self._catalogue
        latent, nearest, content = self._quantise_raw(item_ids, vectors, masks or {}, sizes, predict=collaborative == "predicted")
        assert self.rqvae is not None
        codes, report = assign_unique_codes(nearest, latent, self.rqvae.codebooks.detach(), taken=before.item_codes)
        self._catalogue = self._new_catalogue(
            before.item_ids + item_ids,
            torch.cat([before.item_codes, codes]),
            torch.cat([before.new_items, torch.ones(len(item_ids), dtype=torch.bool)]),
            None if before.item_vectors is None else torch.cat([before.item_vectors, content.to(before.item_vectors)]),
        )
        return AddedItems(codes, report.moved, report.spilled, report.collision_rate_before)

    def codable(self, masks: Mapping[str, Any], collaborative: str = "predicted") -> Tensor:
        """(n,) bool, which of n new items `add_items` can give codes, by the modalities they have: any of this tokenizer's will do.

        Args:
            masks: modality -> (n,) booleans, True where there is a vector; not empty.
            collaborative: as for `add_items`.

        Raises:
            ValueError: a tokenizer that takes no new items at all.
        """
        sizes = self._input_sizes()
        given = [_mask(name, mask, len(mask)) for name, mask in masks.items() if name in sizes]
        size = len(next(iter(masks.values())))
        return torch.stack(given).any(dim=0) if given else torch.zeros(size, dtype=torch.bool)

    def remove_items(self, item_ids: Sequence[str]) -> None:
        """Take items out of the catalogue: they are known and recommended no longer, and their codes are free. Others keep theirs.

        Raises:
            ValueError: an id outside the catalogue, or no item would be left. The tokenizer is left as it was.
        """
        if isinstance(item_ids, str):
            raise ValueError(f"item_ids is a list of item ids, got the string {item_ids!r}; write [{item_ids!r}]")
        before = self._catalogue
        kept = torch.ones(len(before.item_ids), dtype=torch.bool)
        kept[self.item_indices(item_ids)] = False
        if not bool(kept.any()):
            raise ValueError(f"item_ids: all {len(kept)} items of the catalogue would go; a tokenizer needs at least one")
        remaining = [before.item_ids[index] for index in kept.nonzero().flatten().tolist()]
        vectors = None if before.item_vectors is None else before.item_vectors[kept]
        self._catalogue = self._new_catalogue(remaining, before.item_codes[kept], before.new_items[kept], vectors)

    def _input_sizes(self) -> Mapping[str, int]:
        """Modality -> dimension of what is read by the network that codes new items; ValueError where there is none."""
        if self.rqvae is None:
            raise ValueError("this tokenizer has no RQ-VAE to code new items with; load one that `cemg tokenize` wrote")
        return self.rqvae.config.modality_dims

    def _check_new_ids(self, item_ids: Sequence[str]) -> list[str]:
        if isinstance(item_ids, str):
            raise ValueError(f"item_ids is a list of item ids, got the string {item_ids!r}; write [{item_ids!r}]")
        found = list(item_ids)
        if not found:
            raise ValueError("item_ids: empty; give at least one new item")
        _check_ids(found)
        known = [item_id for item_id in found if item_id in self._catalogue.index]
        if known:
            more = f" and {len(known) - 1} more" if len(known) > 1 else ""
            raise ValueError(f"item id {known[0]!r}{more} exists in the catalogue; remove_items it first, or leave it out")
        if len(set(found)) != len(found):
            seen: set[str] = set()
            twice = next(item_id for item_id in found if item_id in seen or seen.add(item_id))  # type: ignore[func-returns-value]
            raise ValueError(f"item id {twice!r} is given twice among the {len(found)} new items; give each once")
        total = len(self._catalogue.item_ids) + len(found)
        if total > self.codebook_size**self.num_levels:
            raise ValueError(
                f"{total} items, {len(found)} of them new, do not fit into {self.codebook_size}^{self.num_levels} codes; "
                "add fewer, or train a tokenizer with a larger codebook_size or num_levels"
            )
        return found

    @torch.no_grad()
    def _quantise_raw(
        self, item_ids: list[str], vectors: Mapping[str, Any], masks: Mapping[str, Any], sizes: Mapping[str, int], predict: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """z (n, D), nearest codes (n, M) and content vectors (n, V), on the CPU, from raw encoder vectors; a block of items at a time."""
        rqvae = self.rqvae
        assert rqvae is not None
        latent, codes, content = [], [], []
        was_training = rqvae.training
        rqvae.eval()
        try:
            for _, features, given in self._inputs(item_ids, vectors, masks, sizes, rqvae.codebooks.device):
                if predict:
                    features, given = rqvae.fill_collaborative(features, given)
                z = rqvae.encode(features, given)
                latent.append(z.cpu())
                codes.append(rqvae.quantise(z).codes.cpu())
                content.append(rqvae.content_vectors(features, given).cpu())
        finally:
            rqvae.train(was_training)
        return torch.cat(latent), torch.cat(codes), torch.cat(content)

    def _inputs(
        self, item_ids: list[str], vectors: Mapping[str, Any], masks: Mapping[str, Any], sizes: Mapping[str, int], device: torch.device
    ) -> Iterator[tuple[list[str], dict[str, Tensor], dict[str, Tensor]]]:
        """Ids, network inputs and masks of new items, a block at a time, from raw encoder vectors.

        Args:
            item_ids: n ids.
            vectors: modality -> (n, D_m).
            masks: modality -> (n,) booleans.
            sizes: modality -> d_m of the networks' inputs.
            device: where the networks are.

        Raises:
            ValueError: what does not fit, or an item without any modality; for the arguments as a whole before the first block.
        """
        for argument, given in (("vectors", vectors), ("masks", masks)):
            unknown = [name for name in given if name not in sizes]
            if unknown:
                raise ValueError(f"{argument}: modality {unknown[0]!r} is not one the tokenizer was trained on ({', '.join(sizes)})")
            for name, values in given.items():
                if len(values) != len(item_ids):
                    raise ValueError(f"{argument}[{name!r}]: {len(values)} rows for {len(item_ids)} item ids; give one row per item")
        if not vectors:
            raise ValueError("vectors: empty; give raw encoder vectors of at least one modality")
        for start in range(0, len(item_ids), ENCODED_AT_ONCE):
            rows = slice(start, start + ENCODED_AT_ONCE)
            ids = item_ids[rows]
            present = {name: _mask(name, masks[name][rows] if name in masks else None, len(ids)) for name in vectors}
            bare = ~torch.stack(list(present.values())).any(dim=0)
            if bool(bare.any()):
                raise ValueError(f"item {ids[int(bare.nonzero()[0])]!r} has no modality at all; give it a vector, or leave it out")
            inputs = {name: self._project(name, vectors[name][rows], mask, ids, sizes[name], device) for name, mask in present.items()}
            yield ids, inputs, {name: mask.to(device) for name, mask in present.items()}

    def _project(self, name: str, raw: Any, mask: Tensor, ids: list[str], size: int, device: torch.device) -> Tensor:
        """Network inputs (B, size) on the device of raw vectors (B, D_m), zero where masked."""
        values = _tensor(raw).float()
        parts = self.projections.get(name)
        expected = size if parts is None else parts["components"].shape[1]
        if values.ndim != 2 or values.shape[1] != expected:
            found = values.shape[1] if values.ndim == 2 else f"shape {tuple(values.shape)}"
            raise ValueError(f"vectors[{name!r}]: dimension {found}, expected {expected}; encode with {self._encoder_name(name)}")
        values, mask = values.to(device), mask.to(device)
        broken = mask & ~values.isfinite().all(dim=1)
        if bool(broken.any()):
            raise ValueError(
                f"vectors[{name!r}]: item {ids[int(broken.nonzero()[0])]!r} has NaN or infinite values; mask it or encode it again"
            )
        if parts is not None:
            mean, components, scale = (parts[part].to(values) for part in ("mean", "components", "scale"))
            values = scale * ((values - mean) @ components.T)
        return values.masked_fill(~mask[:, None], 0.0)

    def _encoder_name(self, name: str) -> str:
        described = self.encoders.get(name, {}).get("name")
        return f"the encoder of this tokenizer, {described}" if described else "the encoder it was trained with"

    # ---- items → tokens -----------------------------------------------------------------------------------------------------

    @staticmethod
    def is_one_history(histories: Sequence[str] | Sequence[Sequence[str]]) -> bool:
        """Whether this is the history of one user (a list of ids, or an empty list) rather than a list of histories."""
        if isinstance(histories, str):
            raise ValueError(f"a history is a list of item ids, got the string {histories!r}; write [{histories!r}]")
        wrong = next((entry for entry in histories if not isinstance(entry, Iterable)), None)
        if wrong is not None:
            raise ValueError(f"item ids are strings, got {wrong!r} ({type(wrong).__name__}) in a history; write {str(wrong)!r}")
        kinds = {isinstance(entry, str) for entry in histories}
        if len(kinds) > 1:
            raise ValueError("give one history (a list of item ids) or a batch (a list of lists of item ids), not a mixture of both")
        return kinds != {False}

    def item_indices(self, history: Sequence[str], on_unknown: str = "error") -> Tensor:
        """Row numbers (L,) int64 of the items of a history.

        Raises:
            ValueError: an id outside the catalogue, unless `on_unknown="skip"` leaves it out.
        """
        if on_unknown not in ("error", "skip"):
            raise ValueError(f"on_unknown must be 'error' or 'skip', got {on_unknown!r}")
        catalogue = self._catalogue
        unknown = [item_id for item_id in history if item_id not in catalogue.index]
        if unknown and on_unknown == "error":
            more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
            raise ValueError(
                f"item id {unknown[0]!r}{more} is not among the {len(catalogue.item_ids)} items of the catalogue; "
                "correct it, or pass on_unknown='skip' to leave unknown items out"
            )
        return torch.tensor([catalogue.index[item_id] for item_id in history if item_id in catalogue.index], dtype=torch.int64)

    def history_ids(self, indices: Tensor) -> list[int]:
        """Token ids of a history of item indices (L,): `<s>` and the tokens of the last `max_history` items."""
        return [self.base_vocab_size, *self.history_tokens[indices[-self.max_history :]].flatten().tolist()]

    def __call__(
        self,
        histories: Sequence[str] | Sequence[Sequence[str]],
        *,
        add_special_tokens: bool = True,
        padding: bool | str = False,
        on_unknown: str = "error",
        return_tensors: str | None = None,
        **kwargs: Any,
    ) -> BatchEncoding:
        """Token ids of one history (list of ids) or a batch (list of lists).

        Histories are cut to their last `max_history` items. `add_special_tokens=False` leaves out the leading `<s>`.

        Raises:
            ValueError: an id outside the catalogue (see `item_indices`), or a string in place of a list.
        """
        single = self.is_one_history(histories)
        batch = [histories] if single else histories
        skip = 0 if add_special_tokens else 1
        ids = [self.history_ids(self.item_indices(history, on_unknown))[skip:] for history in batch]  # type: ignore[arg-type]
        encoded = self.pad(
            {"input_ids": ids, "attention_mask": [[1] * len(row) for row in ids]}, padding=padding, return_tensors=return_tensors, **kwargs
        )
        if single and return_tensors is None:
            return BatchEncoding({name: rows[0] for name, rows in encoded.items()})
        return encoded

    # ---- tokens → items -----------------------------------------------------------------------------------------------------

    def decode_items(self, token_ids: Sequence[int] | Tensor) -> list[str]:
        """Item ids written by a sequence of token ids; `<s>`, padding and end tokens are skipped.

        Raises:
            ValueError: the rest is not a sequence of whole items of the catalogue.
        """
        ids = torch.as_tensor(token_ids).flatten().cpu()
        codes = ids[ids >= self.first_code_id]
        if len(codes) % self.num_levels:
            raise ValueError(f"{len(codes)} code tokens are not whole items of {self.num_levels}")
        rows = codes.view(-1, self.num_levels)
        catalogue = self._catalogue
        leaves = catalogue.trie.walk(rows - self._level_starts)
        if bool((leaves < 0).any()):
            wrong = "".join(self.convert_ids_to_tokens(rows[leaves < 0][0].tolist()))
            raise ValueError(f"{wrong} is the code of no item in the catalogue")
        return [catalogue.item_ids[item] for item in catalogue.trie.leaf_items[leaves].tolist()]

    # ---- what codes mean ----------------------------------------------------------------------------------------------------

    def quantised_vectors(self) -> Tensor | None:
        """(N, D) sum of each item's code vectors; None without an RQ-VAE."""
        if self.rqvae is None:
            return None
        return self.rqvae.codebooks.cpu()[torch.arange(self.num_levels), self.item_codes].sum(1)

    def describe(self, codes: str, items: Mapping[str, Sequence[Any]] | None = None, top: int = 10) -> BranchDescription:
        """What the items under a prefix such as `<a_12><b_7>` have in common ("" is the whole catalogue).

        Args:
            codes: code tokens from the first level on, at most M.
            items: columns of the item table in the order of `item_ids` (title, brand, categories, description); without them the
                description holds ids and counts only.
            top: how many typical items, words and categories.

        Returns:
            Size of the branch, its typical items, words and categories; printed, it is a text.

        Raises:
            ValueError: codes that are none of this tokenizer's, or a branch without items.
        """
        prefix = parse_prefix(codes, self.num_levels, self.codebook_size)
        return describe_branch(prefix, self.item_ids, self.item_codes, self.quantised_vectors(), items, top)

    # ---- what PreTrainedTokenizer asks of a vocabulary -----------------------------------------------------------------------

    @property
    def vocab_size(self) -> int:
        return self.first_code_id + self.num_levels * self.codebook_size

    def __len__(self) -> int:
        return self.vocab_size

    def get_vocab(self) -> dict[str, int]:
        return dict(self._token_ids)

    def _vocabulary(self) -> dict[str, int]:
        """Token → id of everything that is not the backbone's own."""
        return {"<pad>": 0, "</s>": 1, "<s>": self.base_vocab_size} | {
            f"<{chr(97 + level)}_{code}>": self.first_code_id + level * self.codebook_size + code
            for level in range(self.num_levels)
            for code in range(self.codebook_size)
        }

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        return [match.group(0) for match in CODE_TOKEN.finditer(text)]

    def _convert_token_to_id(self, token: str) -> int:
        if token not in self._token_ids:
            raise ValueError(
                f"{token!r} is no token of this tokenizer; codes look like <a_0> … <{chr(96 + self.num_levels)}_{self.codebook_size - 1}>"
            )
        return self._token_ids[token]

    def _convert_id_to_token(self, index: int) -> str:
        if index not in self._tokens:
            raise ValueError(f"token id {index} is none of this tokenizer's; codes are {self.first_code_id} … {self.vocab_size - 1}")
        return self._tokens[index]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        return "".join(tokens)

    def build_inputs_with_special_tokens(self, token_ids_0: list[int], token_ids_1: list[int] | None = None) -> list[int]:
        return [self.base_vocab_size, *token_ids_0, *(token_ids_1 or [])]

    def _catalogue_tensors(self) -> dict[str, Tensor]:
        """What is saved of the catalogue beside its ids."""
        catalogue = self._catalogue
        tensors = {"item_codes": catalogue.item_codes.int(), "new_items": catalogue.new_items}
        return tensors if catalogue.item_vectors is None else tensors | {"item_vectors": catalogue.item_vectors}

    def _network(self) -> tuple[dict[str, Any], nn.Module] | None:
        """What is saved of what gives new items their codes: how it is built, as plain JSON values, and its weights."""
        return None if self.rqvae is None else ({"rqvae": self.rqvae.config.to_dict()}, self.rqvae)

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Catalogue and RQ-VAE as JSON and safetensors; loading them gives the same tokenizer bit for bit.

        All files are written beside the old ones first and then put in their places one after the other.
        """
        prefix = f"{filename_prefix}-" if filename_prefix else ""
        paths = {key: Path(save_directory) / f"{prefix}{name}" for key, name in self.vocab_files_names.items()}
        catalogue = self._catalogue
        writers: dict[Path, Callable[[Path], object]] = {
            paths["item_ids_file"]: _text_writer(json.dumps(catalogue.item_ids, ensure_ascii=False)),
            paths["item_codes_file"]: _tensors_writer(self._catalogue_tensors()),
        }
        network = self._network()
        if network is not None:
            described, module = network
            described = {"format": FORMAT, **described, "encoders": self.encoders, "projections": sorted(self.projections)}
            weights = {key: value.detach().cpu().contiguous() for key, value in module.state_dict().items()}
            weights |= {
                f"projection.{name}.{part}": value.contiguous() for name, parts in self.projections.items() for part, value in parts.items()
            }
            writers[paths["rqvae_config_file"]] = _text_writer(json.dumps(described, indent=2, ensure_ascii=False))
            writers[paths["rqvae_file"]] = _tensors_writer(weights)
        scratch = {path: path.with_name(f".{path.name}.partial") for path in writers}
        try:
            for path, write in writers.items():
                write(scratch[path])
            for path in paths.values():
                if path in scratch:
                    scratch[path].replace(path)
                else:
                    path.unlink(missing_ok=True)
        finally:
            for path in scratch.values():
                path.unlink(missing_ok=True)
        return tuple(str(path) for path in writers)


def _text_writer(content: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(content, encoding="utf-8")


def _tensors_writer(tensors: dict[str, Tensor]) -> Callable[[Path], object]:
    return lambda path: save_file(tensors, path, metadata={"format": "pt"})


def load_tensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """All tensors of a safetensors file; ValueError where it is none."""
    try:
        with safe_open(path, framework="pt") as stored:
            return {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118 - not a dict
    except SafetensorError as error:
        raise ValueError(f"{path}: not a safetensors file ({error}); save or download the tokenizer again") from error


def load_network(config_file: str | os.PathLike[str], file: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensor], Any]:
    """What `save_vocabulary` wrote of networks: their description, their weights, and the projections before them."""
    described = json.loads(Path(config_file).read_text(encoding="utf-8"))
    _check_format(described.get("format", FORMAT))
    tensors = load_tensors(file)
    projections: dict[str, dict[str, Tensor]] = {name: {} for name in described["projections"]}
    for key in [key for key in tensors if key.startswith("projection.")]:
        _, name, part = key.split(".")
        projections[name][part] = tensors.pop(key)
    return described, tensors, projections


def check_collaborative(treatment: str) -> None:
    if treatment not in ("predicted", "masked"):
        raise ValueError(f"collaborative must be 'predicted' or 'masked', got {treatment!r}")


def _check_format(found: int) -> None:
    if found != FORMAT:
        remedy = "update cemg_hf" if found > FORMAT else "write it again with `cemg tokenize`"
        raise ValueError(f"the tokenizer's files have format {found}, this version of cemg_hf reads format {FORMAT}; {remedy}")


def _check_ids(item_ids: list[str]) -> None:
    if set(map(type, item_ids)) <= {str}:
        return
    unfit = next((item_id for item_id in item_ids if not isinstance(item_id, str)), None)
    if unfit is not None:
        raise ValueError(f"item ids are strings, got {unfit!r} ({type(unfit).__name__}); convert them with str()")


def _tensor(values: Any) -> Tensor:
    """A copy of an array, which may be a read-only map of a file; a tensor as it is."""
    return values if isinstance(values, Tensor) else torch.tensor(values)


def _mask(name: str, values: Any, size: int) -> Tensor:
    """(B,) bool; all True where no mask is given."""
    if values is None:
        return torch.ones(size, dtype=torch.bool)
    mask = _tensor(values).cpu()
    if mask.dtype != torch.bool or mask.ndim != 1:
        raise ValueError(f"masks[{name!r}]: {mask.dtype} of {mask.ndim} dimensions, expected one boolean per item")
    return mask
