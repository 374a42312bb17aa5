"""CEMG for Hugging Face: multimodal generative recommendation.

Raw interactions and item content → features → item codes → a T5 that writes codes → ranked real items → the Hub.
"""

from transformers import AutoConfig, AutoModel, AutoModelForSeq2SeqLM, AutoTokenizer
from transformers.pipelines import PIPELINE_REGISTRY

from .errors import CEMGError
from .models.cemg import (
    CEMGRQVAE,
    CEMGConfig,
    CEMGForConditionalGeneration,
    CEMGRQVAEConfig,
    CEMGTokenizer,
    ItemTrie,
    NextItemRecommendationPipeline,
    PrefixConstrainedLogitsProcessor,
    Recommendation,
    constrained_beam_search,
)
from .models.cemg.pipeline_cemg import TASK
from .models.gru4rec import GRU4RecConfig, GRU4RecForNextItem
from .models.mscgrec import MSCGRecConfig, MSCGRecForConditionalGeneration, MSCGRecTokenizer
from .models.sasrec import SASRecConfig, SASRecForNextItem

AutoConfig.register("cemg", CEMGConfig)
AutoTokenizer.register(CEMGConfig, slow_tokenizer_class=CEMGTokenizer)
AutoModel.register(CEMGConfig, CEMGForConditionalGeneration)
AutoModelForSeq2SeqLM.register(CEMGConfig, CEMGForConditionalGeneration)
AutoConfig.register("mscgrec", MSCGRecConfig)
AutoTokenizer.register(MSCGRecConfig, slow_tokenizer_class=MSCGRecTokenizer)
AutoModel.register(MSCGRecConfig, MSCGRecForConditionalGeneration)
AutoModelForSeq2SeqLM.register(MSCGRecConfig, MSCGRecForConditionalGeneration)
AutoConfig.register("sasrec", SASRecConfig)
AutoModel.register(SASRecConfig, SASRecForNextItem)
AutoConfig.register("gru4rec", GRU4RecConfig)
AutoModel.register(GRU4RecConfig, GRU4RecForNextItem)
PIPELINE_REGISTRY.register_pipeline(TASK, pipeline_class=NextItemRecommendationPipeline, pt_model=AutoModelForSeq2SeqLM)

__version__ = "0.1.0"

__all__ = [
    "CEMGRQVAE",
    "CEMGConfig",
    "CEMGError",
    "CEMGForConditionalGeneration",
    "CEMGRQVAEConfig",
    "CEMGTokenizer",
    "GRU4RecConfig",
    "GRU4RecForNextItem",
    "ItemTrie",
    "MSCGRecConfig",
    "MSCGRecForConditionalGeneration",
    "MSCGRecTokenizer",
    "NextItemRecommendationPipeline",
    "PrefixConstrainedLogitsProcessor",
    "Recommendation",
    "SASRecConfig",
    "SASRecForNextItem",
    "constrained_beam_search",
]
