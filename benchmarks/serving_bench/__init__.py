"""The parts of `benchmarks/serving.py`: load generator, servers to compare, payloads and the printing."""
