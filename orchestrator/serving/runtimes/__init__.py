"""Runtimes: one module per format that a replica can load; `api` names them and loads them lazily."""
