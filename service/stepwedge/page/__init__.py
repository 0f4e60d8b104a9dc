"""What the HTTP port answers."""
