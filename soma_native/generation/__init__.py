"""Generation of text: the generator, the settings of a call, and the output of whole characters."""
