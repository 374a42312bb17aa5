"""GRU4Rec (Hidasi et al., 2016), trained on next-item cross-entropy."""

from .configuration_gru4rec import GRU4RecConfig
from .modeling_gru4rec import GRU4RecForNextItem

__all__ = ["GRU4RecConfig", "GRU4RecForNextItem"]
