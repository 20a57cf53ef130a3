"""System calls of a view that are answered by its session: seccomp user notification."""
