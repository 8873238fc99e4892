"""The cards of the metrics in the registry, by what they measure; a test compares them with `docs/metrics.md`."""
