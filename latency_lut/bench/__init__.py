"""Whole networks timed side by side: their float and INT8 forms, results, profile, report."""
