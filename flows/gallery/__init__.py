"""The gallery: a local web page over the dreams of a destination."""
