"""What methods share: the mean, stacks of factors, covariances, robust averages, a bound on norms."""
