"""The terminal: one file per verb; each parses, calls `app`, prints."""
