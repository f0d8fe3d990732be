"""Runs a plan: transitions, segments, retries, recovery, events. The only code that changes the state of an execution."""
