"""The integer network: its graph, lowering, exact transforms, conversion to an engine, parity."""
