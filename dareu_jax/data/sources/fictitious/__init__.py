"""Owners who do not exist, and questions about them."""
