"""expunge: make a causal language model forget, keep the rest, and prove it."""

__version__ = "0.1.0"
