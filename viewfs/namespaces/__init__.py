"""Namespaces: making a view's, entering them, shutting a module server in, and ending all that live in one."""
