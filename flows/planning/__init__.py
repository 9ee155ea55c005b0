"""From a job to its plan: checks, the search for photographs, channels, retries, enlargements, and estimates."""
