"""Decider: opportunities in; rules, then a panel of models; explained decisions out."""
