"""Item content to vectors: text and image encoders, PCA, and the store that the tokenizer learns from."""

from .encoder import ItemEncoder, RawFeatures
from .image import ImageConfig, VGGImageEncoder
from .items import encode_items, image_encoder, load_encoder, text_encoder
from .light import ColourGradientImageEncoder, TfidfTextEncoder
from .projection import Projection
from .store import MODALITIES, FeatureStore, ModalityFeatures
from .text import TextConfig, TransformerTextEncoder, item_texts

__all__ = [
    "MODALITIES",
    "ColourGradientImageEncoder",
    "FeatureStore",
    "ImageConfig",
    "ItemEncoder",
    "ModalityFeatures",
    "Projection",
    "RawFeatures",
    "TextConfig",
    "TfidfTextEncoder",
    "TransformerTextEncoder",
    "VGGImageEncoder",
    "encode_items",
    "image_encoder",
    "item_texts",
    "load_encoder",
    "text_encoder",
]
