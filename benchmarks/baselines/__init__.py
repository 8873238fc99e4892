"""Trainer and evaluator written the way published ones work: the other side of every benchmark."""
