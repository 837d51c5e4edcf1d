"""The web page on an index."""
