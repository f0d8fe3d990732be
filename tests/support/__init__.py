"""Parts that several tests start for real."""
