"""From a corpus to a trained model: settings, the run and what it records, checkpoints to go on from."""
