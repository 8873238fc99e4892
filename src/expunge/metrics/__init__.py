"""Metrics as pure array functions that return a `Score`. No torch, no models."""
