"""What it costs that a session is asked about system calls, beside a tracer that looks at every call."""
