"""Rows in, token ids out: sources, formats, chat templates, answer spans, batches, streams."""
