"""CEMG: what travels inside a Hub checkpoint. These files import torch, transformers, safetensors and each other, nothing else."""

from .assignment_cemg import AssignmentReport, assign_unique_codes, collision_rate
from .configuration_cemg import CEMGConfig
from .dense_cemg import DenseSettings, DenseTower
from .generation_cemg import Diversity, ItemFilter, PrefixConstrainedLogitsProcessor, constrained_beam_search
from .hybrid_cemg import Candidates
from .modeling_cemg import CEMGForConditionalGeneration
from .modeling_rqvae import CEMGRQVAE, CEMGRQVAEConfig
from .new_items_cemg import SeparateRankings
from .objective_cemg import Objective
from .pipeline_cemg import NextItemRecommendationPipeline
from .recommendation_cemg import Recommendation
from .tokenization_cemg import AddedItems, CEMGTokenizer
from .trie_cemg import ItemTrie

CEMGConfig.register_for_auto_class()
CEMGTokenizer.register_for_auto_class()
CEMGForConditionalGeneration.register_for_auto_class("AutoModelForSeq2SeqLM")

__all__ = [
    "CEMGRQVAE",
    "AddedItems",
    "AssignmentReport",
    "CEMGConfig",
    "CEMGForConditionalGeneration",
    "CEMGRQVAEConfig",
    "CEMGTokenizer",
    "Candidates",
    "DenseSettings",
    "DenseTower",
    "Diversity",
    "ItemFilter",
    "ItemTrie",
    "NextItemRecommendationPipeline",
    "Objective",
    "PrefixConstrainedLogitsProcessor",
    "Recommendation",
    "SeparateRankings",
    "assign_unique_codes",
    "collision_rate",
    "constrained_beam_search",
]
