"""Readers of what runs leave: results, comparisons, figures. Needs neither torch nor MPI."""
