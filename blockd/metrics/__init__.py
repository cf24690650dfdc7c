"""Metrics for Prometheus: what is told (`catalog`), read from a node (`facts`), and served (`app`).

Everything here runs when somebody scrapes; between scrapes it costs nothing.
"""
