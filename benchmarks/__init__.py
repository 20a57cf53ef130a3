"""`make bench`: viewfs beside the kernel's own mounts and other FUSE servers, on the same images.

`dataset` and `images` make what is read, `contenders` says who reads it, `measurements` what is asked of them;
`workload` is the program that asks, `stage` gives it a fresh mount, `run` says in which order; `figures`, `aims`,
`report` and `plot` make a page of what came out.
"""
