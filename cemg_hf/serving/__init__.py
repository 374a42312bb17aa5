"""Recommendations for others: an HTTP service, the same service on Ray."""
