"""The gallery: web pages that show the dreams of a destination, served on this machine or exported as files."""
