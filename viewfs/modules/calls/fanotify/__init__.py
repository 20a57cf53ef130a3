"""fanotify(7) for every user of a view: notification and permission groups that report descriptors."""

from viewfs.modules.calls.fanotify.module import Fanotify

__all__ = ["Fanotify"]
