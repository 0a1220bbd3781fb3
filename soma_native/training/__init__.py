"""Training: settings, the trainer and its run, the history, and checkpoints to resume from."""
