"""Configuration of the MSCGRec generator: CEMG's, with several code streams per item in the history."""

from __future__ import annotations

from typing import Any

from ..cemg.configuration_cemg import CEMGConfig


class MSCGRecConfig(CEMGConfig):
    r"""Settings of [`MSCGRecForConditionalGeneration`]: those of a `CEMGConfig`, and the streams.

    The vocabulary is that of CEMG for the first stream, the one that the decoder writes, then M blocks of K code tokens for each further
    stream, and at last one token per stream that stands, M times, where an item has no code in it.

    Args:
        streams (list of `str`, defaults to `["collaborative"]`): names of the code streams; the decoder writes the first of them.
        dual_positions (`bool`, defaults to `True`): the encoder's relative positions are two, the distance between items and the distance
            inside an item's tokens. `False`: T5's own, the distance between tokens.
    """

    model_type = "mscgrec"
    _auto_class = None  # CEMG's code is copied into saved folders; this one needs the package

    streams: list[str] | None = None
    dual_positions: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        self.streams = ["collaborative"] if self.streams is None else list(self.streams)
        if not self.streams or len(set(self.streams)) < len(self.streams):
            raise ValueError(f"streams must be one or more different names, got {self.streams}")
        super().__post_init__(**kwargs)

    @property
    def needed_vocab_size(self) -> int:
        """Rows of the embedding that this geometry asks for."""
        assert self.streams is not None
        return self.first_code_id + len(self.streams) * (self.num_levels * self.codebook_size + 1)

    @property
    def tokens_per_item(self) -> int:
        """Tokens that an item of the history is written with: M of every stream."""
        assert self.streams is not None
        return len(self.streams) * self.num_levels
