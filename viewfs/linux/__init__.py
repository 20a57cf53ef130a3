"""The syscall floor: one thin function per call, the kernel's names and argument order, `OSError` out, no policy."""
