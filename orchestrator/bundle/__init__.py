"""What is kept and what is carried: the artifact store, the OCI bundle, golden samples. Imports no ONNX, no torch."""
