"""Suite declarations, one per benchmark; no torch."""
