"""What a trained model is compared with."""
