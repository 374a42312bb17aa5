"""SASRec (Kang & McAuley, 2018) with full or sampled softmax, and eSASRec's layers (arXiv 2508.06450)."""

from .configuration_sasrec import SASRecConfig
from .modeling_sasrec import SASRecForNextItem

__all__ = ["SASRecConfig", "SASRecForNextItem"]
