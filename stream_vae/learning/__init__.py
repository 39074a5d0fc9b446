"""Training: from stamps to a release. Nothing here is imported by serving."""
