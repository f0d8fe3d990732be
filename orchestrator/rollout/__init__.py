"""The control plane: walks an endpoint from one generation to the next. The ledger decides, the router's table follows."""
