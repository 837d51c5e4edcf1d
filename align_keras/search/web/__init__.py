"""The web page that searches an index."""
