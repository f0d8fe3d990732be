"""The replica process: load, warm up, self-check, then batches until drained."""
