"""The files that travel with every checkpoint."""
