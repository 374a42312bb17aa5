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
from torch import Tensor, nn

from ..cemg.assignment_cemg import AssignmentReport, assign_unique_codes
from ..cemg.modeling_rqvae import COLLABORATIVE
from ..cemg.tokenization_cemg import (
    AddedItems,
    Catalogue,
    CEMGTokenizer,
    check_collaborative,
    load_network,
    load_tensors,
)
from .quantisers_mscgrec import StreamCodes, StreamQuantisers

MOST_LEVELS = 26
"""Tokens name their level by a letter."""
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
        quantisers (`StreamQuantisers`, *optional*): the frozen networks behind the streams; without them it takes no new items.
        encoders, projections (mappings, *optional*): as for `CEMGTokenizer`, per stream.
        has_quantisers (`bool`, *optional*): whether the saved tokenizer had them; networks that did not arrive are an error then.
        settings: as for `CEMGTokenizer`; it holds no RQ-VAE.

    Raises:
        ValueError: as for `CEMGTokenizer`, streams that are not S different names, or codes, mask and networks that do not fit them.
    """

    _auto_class = None  # CEMG's code is copied into saved folders; this one needs the package

    def __init__(
        self,
        item_ids_file: str | None = None,
        item_codes_file: str | None = None,
        rqvae_config_file: str | None = None,
        rqvae_file: str | None = None,
        *,
        item_ids: Sequence[str] | None = None,
        stream_codes: Tensor | None = None,
        stream_mask: Tensor | None = None,
        streams: Sequence[str] = ("collaborative",),
        num_levels: int = 4,
        codebook_size: int = 256,
        quantisers: StreamQuantisers | None = None,
        encoders: Mapping[str, Any] | None = None,
        projections: Mapping[str, Mapping[str, Tensor]] | None = None,
        has_quantisers: bool = False,
        **settings: Any,
    ) -> None:
        if rqvae_config_file is not None and rqvae_file is not None and quantisers is None:
            described, tensors, projections = load_network(rqvae_config_file, rqvae_file)
            quantisers, encoders = StreamQuantisers.from_description(described, tensors), described["encoders"]
        if quantisers is None and has_quantisers:
            files = ", ".join(self.vocab_files_names[key] for key in ("rqvae_config_file", "rqvae_file"))
            raise ValueError(f"the tokenizer was saved with networks, and their files ({files}) did not all arrive; load it again")
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
        if quantisers is not None:
            _check_networks(quantisers, self.streams, num_levels, codebook_size)
        # The items that the tokenizer knows codes of; a catalogue is some of their rows.
        self._made_of = dict(zip(item_ids, range(len(item_ids)), strict=True)), stream_codes, stream_mask
        super().__init__(
            item_ids=item_ids,
            item_codes=stream_codes[:, 0],
            num_levels=num_levels,
            codebook_size=codebook_size,
            streams=self.streams,
            has_quantisers=quantisers is not None,
            **settings,
        )
        self.quantisers = quantisers
        self.encoders = dict(encoders or {})
        self.projections = {name: dict(parts) for name, parts in (projections or {}).items()}

    def geometry(self) -> dict[str, Any]:
        """The settings a model must share."""
        return super().geometry() | {"streams": self.streams}

    def with_layout(self, *, base_vocab_size: int, max_history: int, decoded: str | None = None) -> MSCGRecTokenizer:
        """The same catalogue and codes for another backbone or history length, as `CEMGTokenizer.with_layout`, or to write another stream.

        Args:
            base_vocab_size: tokens of the backbone, which the code tokens follow.
            max_history: items of a history that are read, the most recent ones.
            decoded: the stream that comes first, the one to write (default: the one that does).

        Returns:
            A new tokenizer; no item of it is new.

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
            quantisers=self.quantisers,
            encoders=self.encoders,
            projections=self.projections,
            padding_side=self.padding_side,
        )

    # ---- new items ----------------------------------------------------------------------------------------------------------

    def add_items(
        self,
        item_ids: Sequence[str],
        vectors: Mapping[str, Any],
        masks: Mapping[str, Any] | None = None,
        *,
        collaborative: str = "predicted",
    ) -> AddedItems:
        """As `CEMGTokenizer.add_items`, in every stream: each vector is coded by its own stream's network, to the nearest free code.

        The stream that is written needs something to code for every new item: its own modality or, if it is the collaborative one, the
        vector that the content head predicts. Histories show what an item has; a predicted vector is for writing it, and stands in them
        as missing, as for the items that training knew no collaborative vector of.

        Args:
            item_ids, vectors, masks: as there.
            collaborative: an item without a collaborative vector gets the one that the content head "predicted", or stays "masked".

        Returns:
            The new items' codes in the written stream, and how many of them lie beside their nearest code.

        Raises:
            ValueError: as there, no networks behind the streams, or an item without what the written stream codes. The tokenizer is left
                as it was.
        """
        quantisers = self._networks()
        item_ids = self._check_new_ids(item_ids)
        check_collaborative(collaborative)
        before, size = self._streams, len(item_ids)
        blocks: dict[str, list[StreamCodes]] = {name: [] for name in self.streams}
        present = torch.zeros(size, len(self.streams), dtype=torch.bool)
        start = 0
        for ids, features, given in self._inputs(item_ids, vectors, masks or {}, quantisers.sizes, quantisers.device):
            coded = quantisers.code(features, given, predict=collaborative == "predicted")
            unknown = ~coded[self.streams[0]].known
            if bool(unknown.any()):
                raise ValueError(f"item {ids[int(unknown.nonzero()[0])]!r} has nothing for the {self.streams[0]} codes; {self._remedy()}")
            for stream, name in enumerate(self.streams):
                blocks[name].append(coded[name])
                if name in given:
                    present[start : start + len(ids), stream] = given[name].cpu()
            start += len(ids)
        codes, reports = [], []
        for stream, name in enumerate(self.streams):
            # Codes of what an item lacks are never shown; they are unique as well, so that any stream can be the one that is written.
            found = StreamCodes(*(torch.cat(parts).cpu() for parts in zip(*blocks[name], strict=True)))
            held = before.stream_codes[:, stream]
            # Where the mask hides them, codes may be anything, or the same twice.
            held = torch.unique(held[((held >= 0) & (held < self.codebook_size)).all(dim=1)], dim=0)
            assigned, report = _unique_codes(found, quantisers.network(name).codebooks.detach(), held)
            codes.append(assigned)
            reports.append(report)
        made_of = (
            dict(zip(before.item_ids + item_ids, range(len(before.item_ids) + size), strict=True)),
            torch.cat([before.stream_codes, torch.stack(codes, dim=1)]),
            torch.cat([before.stream_mask, present]),
        )
        new = torch.cat([before.new_items, torch.ones(size, dtype=torch.bool)])
        self._catalogue = self._new_catalogue(before.item_ids + item_ids, made_of[1][:, 0], new, None, made_of)
        self._made_of = made_of
        written = reports[0]
        return AddedItems(codes[0], written.moved, written.spilled, written.collision_rate_before)

    def codable(self, masks: Mapping[str, Any], collaborative: str = "predicted") -> Tensor:
        """As in CEMG: the items that have something for the stream that is written to code.

        Raises:
            ValueError: no networks behind the streams, or no item could have such a thing.
        """
        quantisers, written = self._networks(), self.streams[0]
        serve = [written]
        if written == COLLABORATIVE and collaborative == "predicted" and quantisers.content_head is not None:
            serve += quantisers.content_head.dims
        elif written == COLLABORATIVE and written not in masks:
            raise ValueError(f"new items have nothing for the collaborative codes; {self._remedy()}")
        return super().codable({name: mask if name in serve else torch.zeros(len(mask), dtype=torch.bool) for name, mask in masks.items()})

    def _input_sizes(self) -> Mapping[str, int]:
        return self._networks().sizes

    def _networks(self) -> StreamQuantisers:
        """The networks behind the streams; ValueError where there are none."""
        if self.quantisers is None:
            raise ValueError(
                "this tokenizer holds no networks to code new items with; run `cemg tokenize` into a new folder, without "
                "streams.image_codes, and train on what it writes"
            )
        return self.quantisers

    def _remedy(self) -> str:
        """What to do about an item that the written stream has no code for."""
        written = self.streams[0]
        if written != COLLABORATIVE:
            return f"give its {written} vector, or leave it out"
        assert self.quantisers is not None
        if self.quantisers.content_head is None:
            return (
                "the tokenizer has no content head to predict them: give its collaborative vector, run `cemg tokenize` with "
                "tokenize.content_head_dim above 0, or train a model whose streams.decoded is a stream of content"
            )
        return f"give it {' or '.join(self.quantisers.content_head.dims)} and collaborative='predicted', or its collaborative vector"

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

    def _new_catalogue(
        self,
        item_ids: list[str],
        item_codes: Tensor,
        new_items: Tensor,
        item_vectors: Tensor | None,
        made_of: tuple[dict[str, int], Tensor, Tensor] | None = None,
    ) -> StreamCatalogue:
        """As in CEMG; `made_of` are rows, codes and masks of the items known from then on."""
        base = super()._new_catalogue(item_ids, item_codes, new_items, item_vectors)
        known, all_codes, all_mask = self._made_of if made_of is None else made_of
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

    def _network(self) -> tuple[dict[str, Any], nn.Module] | None:
        return None if self.quantisers is None else (self.quantisers.description(), self.quantisers)

    def _catalogue_tensors(self) -> dict[str, Tensor]:
        return super()._catalogue_tensors() | {"stream_codes": self.stream_codes.int(), "stream_mask": self.stream_mask}


def _unique_codes(found: StreamCodes, codebooks: Tensor, taken: Tensor) -> tuple[Tensor, AssignmentReport]:
    """(n, M) codes of which none is taken and no two are the same, and the report on those that say something of their item.

    These are assigned first, as in training: an item that lacks the modality takes nothing from one that has it.
    """
    codes, known = torch.zeros_like(found.codes), found.known
    codes[known], report = assign_unique_codes(found.codes[known], found.latent[known], codebooks, taken=taken)
    codes[~known], _ = assign_unique_codes(found.codes[~known], found.latent[~known], codebooks, torch.cat([taken, codes[known]]))
    return codes, report


def _check_networks(quantisers: StreamQuantisers, streams: list[str], num_levels: int, codebook_size: int) -> None:
    """Raises ValueError for networks that are not those of the streams."""
    if set(quantisers.sizes) != set(streams):
        raise ValueError(f"quantisers: networks of {', '.join(quantisers.sizes)} for the streams {', '.join(streams)}")
    for name in streams:
        config = quantisers.network(name).config
        if (config.num_levels, config.codebook_size) != (num_levels, codebook_size):
            raise ValueError(
                f"quantisers: that of {name} writes {config.num_levels} × {config.codebook_size} codes, "
                f"the tokenizer has {num_levels} × {codebook_size}"
            )
