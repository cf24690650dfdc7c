"""Control API under /v1."""
