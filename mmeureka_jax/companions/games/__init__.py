"""Negative momentum in constrained minimax games (arXiv 2501.00533): trees as arrays, methods, exact NashConv."""
