"""Training steps that are measured, and a step taken apart."""
