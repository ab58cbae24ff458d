"""What an endpoint saw, from its captures, beside the baseline of its bundle."""
