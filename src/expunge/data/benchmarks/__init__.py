"""Public benchmarks by name: where their files lie and what their columns mean."""
