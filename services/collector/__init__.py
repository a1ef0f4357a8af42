"""Collector: one exchange's protocol in, verified books, trades and health out."""
