"""MSCGRec's item tokenizer: CEMG's, in which an item has a code in each of several streams."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..cemg.tokenization_cemg import VOCAB_FILES_NAMES, AddedItems, Catalogue, CEMGTokenizer, load_tensors

MOST_LEVELS = 26
TOKEN = re.compile(r"<[a-z]_\d+>|<no_[^<>]+>")


@dataclass(frozen=True)
class StreamCatalogue(Catalogue):
    """A catalogue whose items have `stream_codes` (N, S, M), real where `stream_mask` (N, S), and `history_tokens` (N, S·M)."""

    stream_codes: Tensor
    stream_mask: Tensor
    history_tokens: Tensor


class MSCGRecTokenizer(CEMGTokenizer):
    r"""Writes a history of items as the code tokens of all their streams, `<s><a_12>…<d_3><e_7>…<h_0>…`, S · M tokens per item.

    To everything but a history it is the `CEMGTokenizer` of the first stream: that is the one the decoder writes, its trie is the
    catalogue's. Where an item has no code in a stream, the stream's token `<no_text>` stands M times. Levels are lettered through all
    streams, so that every one has a token range of its own.

    Args:
        item_ids (list of `str`): the catalogue.
        stream_codes (`Tensor` (N, S, M)): raw codes 0 … K−1. In the first stream they are unique and every item has one, so that it can be
            recommended, also where the mask says that it has no such modality. In the others what is masked may hold anything.
        stream_mask (`Tensor` (N, S) bool, *optional*): which of them histories show; all by default.
        streams (list of `str`): S names.
        settings: as for `CEMGTokenizer`; it holds no RQ-VAE, hence takes no new items.

    Raises:
        ValueError: as for `CEMGTokenizer`, streams that are not S different names, or codes and mask that do not fit them.
    """

    _auto_class = None  # CEMG's code is copied into saved folders; this one needs the package
    vocab_files_names = {key: VOCAB_FILES_NAMES[key] for key in ("item_ids_file", "item_codes_file")}  # noqa: RUF012 - as in the base class

    def __init__(
        self,
        item_ids_file: str | None = None,
        item_codes_file: str | None = None,
        *,
        item_ids: Sequence[str] | None = None,
        stream_codes: Tensor | None = None,
        stream_mask: Tensor | None = None,
        streams: Sequence[str] = ("collaborative",),
        num_levels: int = 4,
        codebook_size: int = 256,
        **settings: Any,
    ) -> None:
        if item_ids is None and item_ids_file is not None and item_codes_file is not None:
            item_ids = json.loads(Path(item_ids_file).read_text(encoding="utf-8"))
            stored = load_tensors(item_codes_file)
            if "stream_codes" not in stored:
                raise ValueError(f"{item_codes_file}: holds no tensor stream_codes; save the tokenizer again")
            stream_codes, stream_mask = stored["stream_codes"].long(), stored["stream_mask"]
            settings["new_items"] = stored.get("new_items")
        if item_ids is None or stream_codes is None:
            raise ValueError("an MSCGRecTokenizer needs a catalogue: give item_ids and stream_codes, or load a saved tokenizer folder")
        self.streams = list(streams)
        if not self.streams or len(set(self.streams)) < len(self.streams):
            raise ValueError(f"streams must be one or more different names, got {self.streams}")
        expected = (len(item_ids), len(self.streams), num_levels)
        if not isinstance(stream_codes, Tensor):
            shapes = ", ".join(str(tuple(torch.as_tensor(codes).shape)) for codes in stream_codes)
            raise ValueError(
                f"stream_codes must be one tensor of {' × '.join(map(str, expected))} (items × streams × levels), got {shapes}; "
                "streams have the same items and levels, so stack them in dim=1 and mask what an item does not have"
            )
        if tuple(stream_codes.shape) != expected:
            raise ValueError(
                f"stream_codes must be {' × '.join(map(str, expected))} (items × streams × levels), got {tuple(stream_codes.shape)}"
            )
        if stream_mask is None:
            stream_mask = torch.ones(expected[:2], dtype=torch.bool)
        if tuple(stream_mask.shape) != expected[:2] or stream_mask.dtype != torch.bool:
            raise ValueError(
                f"stream_mask must be {expected[0]} × {expected[1]} booleans, got {tuple(stream_mask.shape)} of {stream_mask.dtype}"
            )
        if len(self.streams) * num_levels > MOST_LEVELS:
            raise ValueError(f"{len(self.streams)} streams of {num_levels} levels are more than the {MOST_LEVELS} letters for levels")
        stream_codes, stream_mask = stream_codes.long().cpu(), stream_mask.cpu()
        shown = stream_codes[stream_mask]
        if shown.numel() and not 0 <= int(shown.min()) <= int(shown.max()) < codebook_size:
            raise ValueError(f"stream_codes must lie in 0 … {codebook_size - 1}, found {int(shown.min())} … {int(shown.max())}")
        # The items that the tokenizer was made with; a catalogue is some of their rows.
        self._made_of = dict(zip(item_ids, range(len(item_ids)), strict=True)), stream_codes, stream_mask
        super().__init__(
            item_ids=item_ids,
            item_codes=stream_codes[:, 0],
            num_levels=num_levels,
            codebook_size=codebook_size,
            streams=self.streams,
            **settings,
        )

    def geometry(self) -> dict[str, Any]:
        """The settings a model must share."""
        return super().geometry() | {"streams": self.streams}

    def with_layout(self, *, base_vocab_size: int, max_history: int, decoded: str | None = None) -> MSCGRecTokenizer:
        """As `CEMGTokenizer.with_layout`; `decoded` names the stream that comes first, the one to write (default: the one that does).

        Raises:
            ValueError: no such stream.
        """
        decoded = self.streams[0] if decoded is None else decoded
        if decoded not in self.streams:
            raise ValueError(f"decoded: there is no stream {decoded!r}; choose one of {', '.join(self.streams)}")
        order = sorted(range(len(self.streams)), key=lambda stream: self.streams[stream] != decoded)
        return MSCGRecTokenizer(
            item_ids=self.item_ids,
            stream_codes=self.stream_codes[:, order],
            stream_mask=self.stream_mask[:, order],
            streams=[self.streams[stream] for stream in order],
            num_levels=self.num_levels,
            codebook_size=self.codebook_size,
            base_vocab_size=base_vocab_size,
            max_history=max_history,
            padding_side=self.padding_side,
        )

    def add_items(self, item_ids: Sequence[str], vectors: Mapping[str, Any], *args: Any, **kwargs: Any) -> AddedItems:
        """Raises ValueError: the networks behind the streams are not kept, so new items cannot be coded."""
        raise ValueError(
            f"a tokenizer of code streams takes no new items ({len(item_ids)} were given); run `cemg tokenize` on the larger catalogue, "
            "or recommend them with a CEMG model"
        )

    # ---- streams ------------------------------------------------------------------------------------------------------------

    @property
    def _streams(self) -> StreamCatalogue:
        catalogue = self._catalogue
        assert isinstance(catalogue, StreamCatalogue)
        return catalogue

    @property
    def stream_codes(self) -> Tensor:
        """(N, S, M) int64 raw codes."""
        return self._streams.stream_codes

    @property
    def stream_mask(self) -> Tensor:
        """(N, S) bool, which of them an item has."""
        return self._streams.stream_mask

    @property
    def history_tokens(self) -> Tensor:
        return self._streams.history_tokens

    @property
    def missing_tokens(self) -> Tensor:
        """(S,) token ids that stand in the place of the codes of each stream."""
        count = len(self.streams)
        return self.first_code_id + count * self.num_levels * self.codebook_size + torch.arange(count)

    def history_tokens_without(self, streams: Sequence[str]) -> Tensor:
        """(N, S·M) the tokens of items in histories that do not show these streams.

        Raises:
            ValueError: a name that is no stream, or none would be left.
        """
        if isinstance(streams, str):
            raise ValueError(f"streams is a list of names, got the string {streams!r}; write [{streams!r}]")
        unknown = [name for name in streams if name not in self.streams]
        if unknown:
            raise ValueError(f"there is no stream {unknown[0]!r} to leave out; the streams are {', '.join(self.streams)}")
        shown = torch.tensor([name not in streams for name in self.streams])
        if not bool(shown.any()):
            raise ValueError(f"streams: all of {', '.join(self.streams)} would be left out; histories need one")
        return self._tokens_of(self.stream_codes, self.stream_mask & shown)

    def _tokens_of(self, codes: Tensor, mask: Tensor) -> Tensor:
        """(N, S·M) token ids of codes (N, S, M), the missing token where the mask (N, S) is False."""
        blocks = self.codebook_size * torch.arange(len(self.streams) * self.num_levels).view(len(self.streams), -1)
        tokens = self.first_code_id + blocks + codes
        return torch.where(mask.unsqueeze(-1), tokens, self.missing_tokens.unsqueeze(-1)).flatten(1)

    def _new_catalogue(self, item_ids: list[str], item_codes: Tensor, new_items: Tensor, item_vectors: Tensor | None) -> StreamCatalogue:
        base = super()._new_catalogue(item_ids, item_codes, new_items, item_vectors)
        known, all_codes, all_mask = self._made_of
        rows = torch.tensor([known[item_id] for item_id in item_ids])
        codes, mask = all_codes[rows], all_mask[rows]
        shown = codes.masked_fill(~mask.unsqueeze(-1), -1)  # what a history says of an item, which is what the model knows of it
        digest = hashlib.sha256(json.dumps([base.fingerprint, self.streams]).encode())
        digest.update(shown.numpy().astype("<i8").tobytes())
        values = {entry.name: getattr(base, entry.name) for entry in fields(base)} | {"fingerprint": digest.hexdigest()}
        return StreamCatalogue(**values, stream_codes=codes, stream_mask=mask, history_tokens=self._tokens_of(codes, mask))

    def decode_items(self, token_ids: Sequence[int] | Tensor) -> list[str]:
        """Item ids written by a sequence of token ids, read from the first stream; items of a history that do not show it are left out."""
        ids = torch.as_tensor(token_ids).flatten().cpu()
        return super().decode_items(ids[ids < self.first_code_id + self.num_levels * self.codebook_size])

    # ---- what the base class asks of a vocabulary -------------------------------------------------------------------------------

    @property
    def vocab_size(self) -> int:
        return self.first_code_id + len(self.streams) * (self.num_levels * self.codebook_size + 1)

    def _vocabulary(self) -> dict[str, int]:
        levels, size = self.num_levels, self.codebook_size
        further = {
            f"<{chr(97 + level)}_{code}>": self.first_code_id + level * size + code
            for level in range(levels, len(self.streams) * levels)
            for code in range(size)
        }
        return (
            super()._vocabulary()
            | further
            | {f"<no_{name}>": token for name, token in zip(self.streams, self.missing_tokens.tolist(), strict=True)}
        )

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        return TOKEN.findall(text)

    def _catalogue_tensors(self) -> dict[str, Tensor]:
        return super()._catalogue_tensors() | {"stream_codes": self.stream_codes.int(), "stream_mask": self.stream_mask}
