"""What modules are made with, and found by."""
