"""MLflow: what the ledger knows, as pages and links. Nothing here decides; importing this package imports no MLflow."""
