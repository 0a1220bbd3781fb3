"""Several processes that train one model: what connects them, and what each asks of the others."""
