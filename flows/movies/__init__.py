"""Movies: zooms, and the dreams of videos."""
