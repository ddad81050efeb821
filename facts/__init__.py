"""What a host is now. Read-only."""
