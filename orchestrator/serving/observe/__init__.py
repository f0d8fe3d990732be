"""What the data plane shows of itself: metrics, events, access log, spans."""
