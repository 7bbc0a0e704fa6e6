"""The similarity room."""
