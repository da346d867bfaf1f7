"""Î: approximate influence predictors, their datasets, and the simulators they augment."""
