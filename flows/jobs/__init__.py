"""The job of a run, the files that it refers to, its plan, and the time that dreams take."""
