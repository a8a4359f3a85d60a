"""sentence-transformers folders: ``modules.json`` lists a chain of modules, each with a folder.

    Transformer  ->  Pooling  ->  Dense  ->  Normalize          ids and mask to ``sentence_embedding``

Configs and weights are read directly: the package itself is not needed, and no code in a folder is run.
"""

from tersor.frontends.torch.sentences.load import load_sentences

__all__ = ["load_sentences"]
