"""From a job to the plan of a run: photographs, channels, estimates."""
