"""What keeps workers running and tells the outside how they are."""
