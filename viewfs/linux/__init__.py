"""System calls: one thin function each, with the kernel's names and argument order, raising `OSError`. No policy."""
