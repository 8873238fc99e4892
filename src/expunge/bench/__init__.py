"""Every method on one small world: the same budget for tuning, one table."""
