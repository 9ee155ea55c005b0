"""What a run shows in Prefect, and what happens when Prefect cancels the run or repeats a task."""
