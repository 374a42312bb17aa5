"""CEMG: what travels inside a Hub checkpoint. These files import torch, transformers, safetensors and each other, nothing else."""

from .configuration_cemg import CEMGConfig
from .generation_cemg import ItemTrie, PrefixConstrainedLogitsProcessor, constrained_beam_search
from .modeling_cemg import CEMGForConditionalGeneration, Recommendation
from .modeling_rqvae import CEMGRQVAE, CEMGRQVAEConfig
from .tokenization_cemg import CEMGTokenizer

CEMGConfig.register_for_auto_class()
CEMGTokenizer.register_for_auto_class()
CEMGForConditionalGeneration.register_for_auto_class("AutoModelForSeq2SeqLM")

__all__ = [
    "CEMGRQVAE",
    "CEMGConfig",
    "CEMGForConditionalGeneration",
    "CEMGRQVAEConfig",
    "CEMGTokenizer",
    "ItemTrie",
    "PrefixConstrainedLogitsProcessor",
    "Recommendation",
    "constrained_beam_search",
]
