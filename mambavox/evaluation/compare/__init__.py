"""Comparisons: methods x tasks x seeds x folds, each cell one training run that is never computed twice."""
