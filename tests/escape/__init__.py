"""What a server could do that its input has taken over, tried from inside servers of each kind."""
