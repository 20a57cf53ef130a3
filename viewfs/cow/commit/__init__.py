"""Making the lower tree what the view shows."""
