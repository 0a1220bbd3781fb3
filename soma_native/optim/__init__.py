"""Optimizers, and the learning rate of each step."""
