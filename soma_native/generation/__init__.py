"""From a prompt to text: what is asked for, the loop of one token at a time, and characters that are whole."""
