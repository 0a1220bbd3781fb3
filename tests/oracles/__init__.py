"""What the tests compare with: the mathematics once more, slowly and in float64."""
