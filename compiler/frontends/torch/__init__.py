"""torch modules into the IR, from the graph of torch.export."""

from tersor.frontends.torch.importer import import_exported, import_graph_module, import_module
from tersor.frontends.torch.pretrained import load_pretrained, text_inputs
from tersor.frontends.torch.saved import load_saved
from tersor.frontends.torch.sentences import load_sentences

__all__ = [
    "import_exported",
    "import_graph_module",
    "import_module",
    "load_pretrained",
    "load_saved",
    "load_sentences",
    "text_inputs",
]
