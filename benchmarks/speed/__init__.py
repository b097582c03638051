"""Speed and memory: scripts that measure both sides of a comparison in one run."""
