"""File formats for other runtimes."""
