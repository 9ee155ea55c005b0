"""What a run shall do: the job, the files that it refers to, and the plan made of it."""
