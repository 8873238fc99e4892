"""Helpers for tests: tiny models and tokenizers, conformance readers."""
