"""Use cases, one file each; `wiring` alone chooses concrete parts."""
