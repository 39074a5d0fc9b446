"""Damaged alerts: a closed list of ways to spoil a good message, each with what must become of it."""
