"""MMGRec (Liu et al. 2024, arXiv 2404.16555): Rec-IDs from a Graph RQ-VAE, written by a Transformer with relation-aware attention.

A baseline beside CEMG. It shares CEMG's residual quantiser, trie and beam search, so it needs the package installed.
"""

from .configuration_mmgrec import MMGRecModelConfig
from .modeling_graph_mmgrec import MultimodalGraphEncoder
from .modeling_mmgrec import MMGRecForRecommendation
from .rec_ids_mmgrec import assign_rec_ids

__all__ = ["MMGRecForRecommendation", "MMGRecModelConfig", "MultimodalGraphEncoder", "assign_rec_ids"]
