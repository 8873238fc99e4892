"""expunge: make a causal language model forget, keep the rest, and measure both."""

__version__ = "0.1.0"
