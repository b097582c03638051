"""Training methods: the StatAssist schedule, GradBoost, 8-bit training."""
