"""The forecast: what the twin says of a model before any NPU exists, and which nodes to keep in fp32."""
