"""torch modules into the IR, from the graph of torch.export."""
