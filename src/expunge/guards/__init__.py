"""Guards: what decides, before or while a model answers, that it does not."""
