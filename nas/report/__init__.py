"""report.html of a run: read the folder (data), draw it (architecture, curves, front, charts), write the page."""
