"""Shared helpers: files, stores, locks, fingerprints, progress, packages."""
