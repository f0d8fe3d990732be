"""From admitted requests to batches on replicas: queues, fairness between endpoints, pace, endings. No sockets, no clock."""
