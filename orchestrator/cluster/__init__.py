"""Ray over REST: the local head, capacity, Serve config."""
