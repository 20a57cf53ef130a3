"""System calls that modules answer."""
