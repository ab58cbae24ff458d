"""What the commands share in talking to a person."""
