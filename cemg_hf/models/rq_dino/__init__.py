"""RQ-DINO: image codes by residual quantisation inside self-distillation (MSCGRec, arXiv 2602.03713)."""

from .configuration_rq_dino import RQDinoConfig
from .modeling_rq_dino import RQDinoModel, RQDinoOutput

__all__ = ["RQDinoConfig", "RQDinoModel", "RQDinoOutput"]
