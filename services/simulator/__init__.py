"""Simulator: exchanges and models in their own protocols, on the loopback interface."""
