"""What turns gradients into steps: optimizers, and the learning rate of each step."""
