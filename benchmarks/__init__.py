"""What Dreamgrid takes in time and memory, beside the same step in plain torch; `python -m benchmarks` measures it."""
