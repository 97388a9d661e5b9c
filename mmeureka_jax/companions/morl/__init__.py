"""Offline multi-objective RL, PRMORL (arXiv 2401.02244) and PDOA (arXiv 2409.09958), on small tasks."""
