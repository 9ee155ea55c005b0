"""Zooms and the dreams of videos."""
