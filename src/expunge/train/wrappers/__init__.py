"""What composes with any method: added loss terms, rules for combining gradients, masks on what may move."""
