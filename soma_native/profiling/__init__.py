"""Workloads to measure training steps with, and a profile of the operations of a step."""
