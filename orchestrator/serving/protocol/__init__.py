"""What clients speak: HTTP/1.1, the Open Inference Protocol over REST and gRPC, tensors and signatures. Knows no model."""
