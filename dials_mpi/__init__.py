"""Distributed influence-augmented local simulators (DIALS) over MPI."""

__version__ = "0.1.0"
