"""The first module that everyone writes: a file at /hello that greets whoever reads it."""

from viewfs.modules.api import FileSystem, Module, Mounting
from viewfs.modules.api.nodes import computed_file


class Hello(Module):
    """One computed file that says hello."""

    name = "hello"
    mount_point = "/hello"

    def open(self, mounting: Mounting) -> FileSystem:
        return computed_file(lambda: "Hello from viewfs!\n")
