"""The frozen networks behind code streams, which give new items codes in every stream."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..cemg.modeling_rqvae import CEMGRQVAE, COLLABORATIVE, CEMGRQVAEConfig, ContentHead


class StreamCodes(NamedTuple):
    """Nearest codes (B, M) int64 of B items in one stream, latents (B, D) they come from, and (B,) bool: items they say something of.

    Latent and codes of the others are those of the network's filler for what is missing.
    """

    codes: Tensor
    latent: Tensor
    known: Tensor


class StreamQuantisers(nn.Module):
    """One residual quantiser per stream, and a head that predicts the collaborative vector of an item from its content.

    Args:
        networks: stream -> its quantiser, whose one modality has the stream's name.
        content_head: the head, where there is one.

    Raises:
        ValueError: networks of other modalities, or a head without a collaborative stream.
    """

    def __init__(self, networks: Mapping[str, CEMGRQVAE], content_head: ContentHead | None = None) -> None:
        super().__init__()
        for name, network in networks.items():
            if list(network.config.modality_dims) != [name]:
                raise ValueError(f"the quantiser of stream {name!r} reads {', '.join(network.config.modality_dims)}; it has to read {name}")
        self.networks = nn.ModuleDict(dict(networks))
        self.content_head = content_head
        if content_head is not None and (COLLABORATIVE not in networks or any(name not in networks for name in content_head.dims)):
            raise ValueError("a content head needs a collaborative stream, and a stream for every modality it reads")
        self.requires_grad_(False).eval()

    @property
    def sizes(self) -> dict[str, int]:
        """Stream -> dimension of the vectors it codes."""
        return {name: self.network(name).config.modality_dims[name] for name in self.networks}

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def network(self, name: str) -> CEMGRQVAE:
        """The quantiser of a stream."""
        network = self.networks[name]
        assert isinstance(network, CEMGRQVAE)
        return network

    @torch.no_grad()
    def code(self, features: Mapping[str, Tensor], masks: Mapping[str, Tensor], *, predict: bool) -> dict[str, StreamCodes]:
        """Codes of B items in every stream.

        Args:
            features: modality -> (B, D_m), for some of the modalities.
            masks: modality -> (B,) bool, True where the vector is real, for the same ones.
            predict: code the collaborative vector that the head predicts where there is content and no such vector.
        """
        size = len(next(iter(features.values())))
        if predict and self.content_head is not None:
            features, masks = self.content_head.fill(features, masks)
        found = {}
        for name, width in self.sizes.items():
            network = self.network(name)
            nothing = torch.zeros(size, width, device=self.device), torch.zeros(size, dtype=torch.bool, device=self.device)
            values, known = (features[name], masks[name]) if name in features else nothing
            latent = network.encode({name: values}, {name: known})
            found[name] = StreamCodes(network.quantise(latent).codes, latent, known)
        return found

    def description(self) -> dict[str, Any]:
        """How it is built, as plain JSON values."""
        hidden = 0 if self.content_head is None else self.content_head.network.last.in_features
        return {"streams": {name: self.network(name).config.to_dict() for name in self.networks}, "content_head_dim": hidden}

    @classmethod
    def from_description(cls, described: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> StreamQuantisers:
        """The inverse of `description` and `state_dict`.

        Raises:
            ValueError: an unknown setting.
            RuntimeError: tensors that do not fit the description.
        """
        configs = {name: CEMGRQVAEConfig.from_dict(values) for name, values in described["streams"].items()}
        head = head_of({name: config.modality_dims[name] for name, config in configs.items()}, described["content_head_dim"])
        quantisers = cls({name: CEMGRQVAE(config) for name, config in configs.items()}, head)
        quantisers.load_state_dict(tensors)
        return quantisers


def head_of(sizes: Mapping[str, int], hidden: int) -> ContentHead | None:
    """An untrained content head for streams of these dimensions; None where there is nothing to predict, or to predict it from."""
    if not hidden or COLLABORATIVE not in sizes or len(sizes) == 1:
        return None
    return ContentHead(CEMGRQVAEConfig(modality_dims=dict(sizes), content_head_dim=hidden))
