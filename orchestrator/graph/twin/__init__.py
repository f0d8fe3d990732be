"""The twin: a graph that rounds like the target does, so that a CPU predicts the NPU's numbers."""
