"""The `arb` command: the only part that knows all services. It starts them as processes."""
