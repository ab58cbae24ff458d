"""Clients of servers that answer about images."""
