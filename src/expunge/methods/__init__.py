"""Unlearning methods: a frozen config and named terms, one per file."""
