"""One module for each format that a vocabulary is published in."""
