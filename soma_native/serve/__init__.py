"""Models behind an address: an HTTP server that speaks OpenAI's API, and a page to play with a model."""
