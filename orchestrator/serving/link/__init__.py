"""Frames between router, replicas and agents; `LINK.md` defines them byte by byte."""
