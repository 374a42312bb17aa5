"""The networks behind the streams: each codes its own modality, and what is predicted is coded like what is given."""

from __future__ import annotations

import json

import pytest
import torch
from stream_samples import SIZES, STREAMS, stream_quantisers

from cemg_hf.models.cemg import CEMGRQVAE, CEMGRQVAEConfig
from cemg_hf.models.mscgrec import StreamQuantisers
from cemg_hf.models.mscgrec.quantisers_mscgrec import head_of

COUNT = 9


def inputs() -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Items of which the first lacks a text and the second a picture; none has a collaborative vector."""
    generator = torch.Generator().manual_seed(1)
    features = {name: torch.randn(COUNT, SIZES[name], generator=generator) for name in ("text", "image")}
    masks = {name: torch.arange(COUNT) != place for place, name in enumerate(features)}
    return {name: values * masks[name][:, None] for name, values in features.items()}, masks


def test_every_stream_is_coded_by_its_own_network_alone():
    quantisers, (features, masks) = stream_quantisers(), inputs()
    found = quantisers.code(features, masks, predict=False)
    assert list(found) == STREAMS
    for name, values in features.items():
        network = quantisers.network(name)
        expected = network.encode_codes({name: values}, {name: masks[name]})
        assert torch.equal(found[name].codes, expected)
        assert torch.equal(found[name].known, masks[name])
        assert len(expected.unique(dim=0)) > 3
    assert not found["collaborative"].known.any()
    assert len(found["collaborative"].codes.unique(dim=0)) == 1  # all the filler's
    other = quantisers.code({"text": features["text"] + 1, "image": features["image"]}, masks, predict=False)
    assert torch.equal(other["image"].codes, found["image"].codes)
    assert not torch.equal(other["text"].codes, found["text"].codes)


def test_what_content_predicts_is_coded_like_what_is_given():
    quantisers, (features, masks) = stream_quantisers(), inputs()
    found = quantisers.code(features, masks, predict=True)["collaborative"]
    assert quantisers.content_head is not None
    with torch.no_grad():
        predicted = quantisers.content_head(features, masks)
    assert found.known.all()
    assert torch.equal(found.codes, quantisers.network("collaborative").encode_codes({"collaborative": predicted}))
    own = torch.randn(COUNT, SIZES["collaborative"])
    given = torch.arange(COUNT) < 4
    mixed = quantisers.code(features | {"collaborative": own}, masks | {"collaborative": given}, predict=True)["collaborative"]
    filled = torch.where(given[:, None], own, predicted)
    assert torch.equal(mixed.codes, quantisers.network("collaborative").encode_codes({"collaborative": filled}))


def test_description_and_weights_are_all_of_it():
    for quantisers in (stream_quantisers(), stream_quantisers(head=False), stream_quantisers(["text"])):
        described = json.loads(json.dumps(quantisers.description()))
        again = StreamQuantisers.from_description(described, quantisers.state_dict())
        features, masks = inputs()
        features, masks = ({name: values[name] for name in again.sizes if name in values} for values in (features, masks))
        found, expected = (one.code(features, masks, predict=True) for one in (again, quantisers))
        for name, codes in expected.items():
            assert all(torch.equal(a, b) for a, b in zip(found[name], codes, strict=True)), name
        assert not again.training
        assert not any(parameter.requires_grad for parameter in again.parameters())


def test_there_is_a_head_where_there_is_something_to_predict_and_to_predict_it_from():
    assert head_of(SIZES, 8) is not None
    assert head_of(SIZES, 0) is None
    assert head_of({"collaborative": 4}, 8) is None
    assert head_of({"text": 4, "image": 3}, 8) is None


def test_networks_that_do_not_belong_to_their_streams_are_refused():
    wrong = CEMGRQVAE(CEMGRQVAEConfig(modality_dims={"text": 4}, dimension=4, hidden_dims=[], latent_dim=3))
    with pytest.raises(ValueError, match="the quantiser of stream 'image' reads text; it has to read image"):
        StreamQuantisers({"image": wrong})
    with pytest.raises(ValueError, match="a content head needs a collaborative stream"):
        StreamQuantisers({"text": wrong}, head_of(SIZES, 8))
