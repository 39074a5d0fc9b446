"""What the commands for people do, without a terminal: look at messages, dead letters and a deployment's health."""
