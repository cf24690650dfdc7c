"""NBD as a sans-I/O engine."""
