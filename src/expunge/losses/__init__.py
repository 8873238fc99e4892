"""Unlearning losses as pure tensor functions, one per file; nothing is reduced here."""
