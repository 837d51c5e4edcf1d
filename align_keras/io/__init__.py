"""What every stage shares: files, locks, fingerprints, progress, packages."""
