"""Benchmarks against a straightforward implementation of the same work. Run as `python -m benchmarks.train`."""
