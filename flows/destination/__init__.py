"""What a destination holds: the rows of the manifest, the records of runs, the marks of dreams."""
