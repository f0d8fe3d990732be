"""Ground floor: ids, errors, units, digests, manifests, redaction, fault points. Imports nothing else of ours."""
