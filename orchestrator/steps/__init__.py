"""What each kind of step does: one file per kind, and the worker that runs a segment of them."""
