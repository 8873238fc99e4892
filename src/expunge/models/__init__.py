"""Models: loading, fingerprints, scoring on the flat layout, reference tables."""
