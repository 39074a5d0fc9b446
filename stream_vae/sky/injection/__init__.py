"""Point sources injected into a user's own images, as the paper made its positives."""
