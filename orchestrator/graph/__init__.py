"""All that is done to an ONNX graph: export, hostile-file check, parity. Modules here are heavy: import them late."""
