"""MSCGRec (arXiv 2602.03713): text, image and collaborative codes as separate streams of the history, of which the decoder writes one.

Tokenizer, trie, search, loss and `recommend` are CEMG's, of which these classes override what streams change. It needs the package
installed.
"""

from .configuration_mscgrec import MSCGRecConfig
from .modeling_mscgrec import MSCGRecForConditionalGeneration
from .quantisers_mscgrec import StreamQuantisers
from .tokenization_mscgrec import MSCGRecTokenizer

__all__ = ["MSCGRecConfig", "MSCGRecForConditionalGeneration", "MSCGRecTokenizer", "StreamQuantisers"]
