"""The agent: holds one device slot and supervises the replicas of its models."""
