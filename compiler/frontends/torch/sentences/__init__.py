"""sentence-transformers folders: ``modules.json`` names what follows each other, each with a folder.

    Transformer  ->  Pooling  ->  Dense  ->  Normalize          ids and mask to ``sentence_embedding``

Configs and weights are read as they are: the package itself is not needed, and no code is run that a
folder names.
"""

from tersor.frontends.torch.sentences.load import load_sentences

__all__ = ["load_sentences"]
