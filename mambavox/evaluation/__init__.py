"""What became of training: the saved classifier, figures on data, comparisons of methods, tables and plots."""
