"""The engine: micro-batches, global reduction, checkpoints, resume."""
