"""From a float model to a graph with fake-quantizers: configuration, operation table, placement, the graph pass."""
