"""Studies of accuracy, one file each: python -m benchmarks.studies.NAME."""
