"""What a call of a character device costs, beside the kernel's own, a pipe to a process, and a file of pyfuse3's."""
