"""What a run shows in Prefect, and how it obeys it."""
