"""Evaluation logs of other software as stored evaluations."""
