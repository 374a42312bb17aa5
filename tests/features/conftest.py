"""Small encoders in the real ones' formats: a BERT with a WordPiece vocabulary, VGG weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from feature_samples import WORDS
from safetensors.torch import save_file
from torchvision import models
from transformers import BertConfig, BertModel, BertTokenizerFast


@pytest.fixture(scope="session")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=32).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def vgg_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Convolutions of a vgg11 alone, as safetensors."""
    torch.manual_seed(0)
    with torch.device("meta"):
        network = models.vgg11(weights=None, init_weights=False)
    state = {
        f"features.{name}": torch.randn(value.shape) / max(value[0].numel(), 1) ** 0.5
        for name, value in network.features.state_dict().items()
    }
    path = tmp_path_factory.mktemp("vgg") / "features.safetensors"
    save_file(state, path)
    return path
