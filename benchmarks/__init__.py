"""Time and memory of Dreamgrid, beside the same step in plain torch. Run `python -m benchmarks`."""
