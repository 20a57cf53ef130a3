"""Copy-on-write as a file system of viewfs's own."""
