"""What is done with finished dreams: verify, compact, prune, reproduce, enlarge."""
