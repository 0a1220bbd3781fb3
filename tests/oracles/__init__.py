"""References for the tests: the mathematics once more, slowly and in float64."""
