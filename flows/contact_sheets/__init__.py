"""Contact sheets: which dreams, in which order, and how they are drawn."""
