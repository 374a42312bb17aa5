"""The item tokenizer: item ids ↔ code tokens, the catalogue, and the RQ-VAE that gave the items their codes."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import BatchEncoding, PreTrainedTokenizer

from .generation_cemg import ItemTrie
from .modeling_rqvae import CEMGRQVAE, CEMGRQVAEConfig

VOCAB_FILES_NAMES = {
    "item_ids_file": "item_ids.json",
    "item_codes_file": "item_codes.safetensors",
    "rqvae_config_file": "rqvae_config.json",
    "rqvae_file": "rqvae.safetensors",
}
CODE_TOKEN = re.compile(r"<([a-z])_(\d+)>")


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
        projections (mapping, *optional*): per modality the PCA that leads from raw encoder vectors to its inputs.

    Attributes:
        item_ids (list of `str`), item_codes (`Tensor` (N, M) int64), item_tokens (their token ids), trie (`ItemTrie`),
        catalogue_fingerprint (`str`).

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
        **kwargs: Any,
    ) -> None:
        if item_ids is None:
            if item_ids_file is None or item_codes_file is None:
                raise ValueError("a CEMGTokenizer needs a catalogue: give item_ids and item_codes, or load a saved tokenizer folder")
            item_ids = json.loads(Path(item_ids_file).read_text(encoding="utf-8"))
            item_codes = _load_tensors(item_codes_file)["item_codes"].long()
        if rqvae_file is not None and rqvae_config_file is not None and rqvae is None:
            described = json.loads(Path(rqvae_config_file).read_text(encoding="utf-8"))
            tensors = _load_tensors(rqvae_file)
            encoders = described["encoders"]
            projections = {name: {} for name in described["projections"]}
            for key in [key for key in tensors if key.startswith("projection.")]:
                _, name, part = key.split(".")
                projections[name][part] = tensors.pop(key)  # type: ignore[index]
            rqvae = CEMGRQVAE(CEMGRQVAEConfig.from_dict(described["rqvae"]))
            rqvae.load_state_dict(tensors)
            rqvae.eval()
        if item_codes is None or tuple(item_codes.shape) != (len(item_ids), num_levels):
            found = None if item_codes is None else tuple(item_codes.shape)
            raise ValueError(f"item_codes must be {len(item_ids)} × {num_levels} (items × levels), got {found}")
        if not 1 <= num_levels <= 26:
            raise ValueError(f"num_levels must be 1 … 26 (levels are lettered), got {num_levels}")
        if max_history < 1:
            raise ValueError(f"max_history must be ≥ 1, got {max_history}")
        if rqvae is None and (encoders or projections):
            raise ValueError("encoders and projections describe what goes into the RQ-VAE; give rqvae too")
        unfit = next((item_id for item_id in item_ids if not isinstance(item_id, str)), None)
        if unfit is not None:
            raise ValueError(f"item ids are strings, got {unfit!r} ({type(unfit).__name__}); convert them with str()")
        self.item_ids = list(item_ids)
        self.item_codes = item_codes.long().cpu().contiguous()
        self.trie = ItemTrie(self.item_codes, codebook_size)
        self.num_levels = num_levels
        self.codebook_size = codebook_size
        self.base_vocab_size = base_vocab_size
        self.max_history = max_history
        self.rqvae = rqvae
        self.encoders = dict(encoders or {})
        self.projections = {name: dict(parts) for name, parts in (projections or {}).items()}
        self._index = {item_id: index for index, item_id in enumerate(self.item_ids)}
        if len(self._index) != len(self.item_ids):
            raise ValueError(f"item ids must be unique: {len(self.item_ids) - len(self._index)} of {len(self.item_ids)} are repeated")
        self.first_code_id = base_vocab_size + 1
        self._level_starts = self.first_code_id + codebook_size * torch.arange(num_levels)
        self.item_tokens: Tensor = self.item_codes + self._level_starts
        self.catalogue_fingerprint = self._fingerprint()
        self._token_ids = {"<pad>": 0, "</s>": 1, "<s>": base_vocab_size}
        self._token_ids |= {
            f"<{chr(97 + level)}_{code}>": self.first_code_id + level * codebook_size + code
            for level in range(num_levels)
            for code in range(codebook_size)
        }
        self._tokens = {index: token for token, index in self._token_ids.items()}
        specials = {"pad_token": "<pad>", "eos_token": "</s>", "bos_token": "<s>"}
        super().__init__(
            num_levels=num_levels,
            codebook_size=codebook_size,
            base_vocab_size=base_vocab_size,
            max_history=max_history,
            **{**specials, "model_max_length": 1 + num_levels * max_history, **kwargs},
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
        """The same catalogue and codes for another backbone or history length."""
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
            padding_side=self.padding_side,
        )

    def _fingerprint(self) -> str:
        digest = hashlib.sha256(json.dumps([self.item_ids, self.num_levels, self.codebook_size]).encode())
        digest.update(self.item_codes.numpy().astype("<i8").tobytes())
        return digest.hexdigest()

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
        unknown = [item_id for item_id in history if item_id not in self._index]
        if unknown and on_unknown == "error":
            more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
            raise ValueError(
                f"item id {unknown[0]!r}{more} is not among the {len(self.item_ids)} items of the catalogue; "
                "correct it, or pass on_unknown='skip' to leave unknown items out"
            )
        return torch.tensor([self._index[item_id] for item_id in history if item_id in self._index], dtype=torch.int64)

    def history_ids(self, indices: Tensor) -> list[int]:
        """Token ids of a history of item indices (L,): `<s>` and the tokens of the last `max_history` items."""
        return [self.base_vocab_size, *self.item_tokens[indices[-self.max_history :]].flatten().tolist()]

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
        leaves = self.trie.walk(rows - self._level_starts)
        if bool((leaves < 0).any()):
            wrong = "".join(self.convert_ids_to_tokens(rows[leaves < 0][0].tolist()))
            raise ValueError(f"{wrong} is the code of no item in the catalogue")
        return [self.item_ids[item] for item in self.trie.leaf_items[leaves].tolist()]

    # ---- what PreTrainedTokenizer asks of a vocabulary -----------------------------------------------------------------------

    @property
    def vocab_size(self) -> int:
        return self.first_code_id + self.num_levels * self.codebook_size

    def __len__(self) -> int:
        return self.vocab_size

    def get_vocab(self) -> dict[str, int]:
        return dict(self._token_ids)

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

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Catalogue and RQ-VAE as JSON and safetensors; loading them gives the same tokenizer bit for bit."""
        folder = Path(save_directory)
        prefix = f"{filename_prefix}-" if filename_prefix else ""
        paths = {key: folder / f"{prefix}{name}" for key, name in self.vocab_files_names.items()}
        paths["item_ids_file"].write_text(json.dumps(self.item_ids, ensure_ascii=False), encoding="utf-8")
        save_file({"item_codes": self.item_codes.int()}, paths["item_codes_file"], metadata={"format": "pt"})
        if self.rqvae is None:
            paths["rqvae_config_file"].unlink(missing_ok=True)
            paths["rqvae_file"].unlink(missing_ok=True)
            return str(paths["item_ids_file"]), str(paths["item_codes_file"])
        described = {"rqvae": self.rqvae.config.to_dict(), "encoders": self.encoders, "projections": sorted(self.projections)}
        paths["rqvae_config_file"].write_text(json.dumps(described, indent=2, ensure_ascii=False), encoding="utf-8")
        tensors = {key: value.detach().cpu().contiguous() for key, value in self.rqvae.state_dict().items()}
        tensors |= {
            f"projection.{name}.{part}": value.contiguous() for name, parts in self.projections.items() for part, value in parts.items()
        }
        save_file(tensors, paths["rqvae_file"], metadata={"format": "pt"})
        return tuple(str(path) for path in paths.values())


def _load_tensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    with safe_open(path, framework="pt") as stored:
        return {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118 - not a dict
