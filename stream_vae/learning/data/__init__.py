"""Stamps to learn from: where they come from, how they are kept, and how they are parted."""
