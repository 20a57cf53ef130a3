"""Who owns the files of an image in a view: the ids that it stores, translated to those that the view has."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from viewfs.modules.api import Attributes, Identities
from viewfs.modules.api.options import choice

__all__ = ["AS_STORED", "OWNER", "Owners"]

#: The option of every module that reads ids from its source.
OWNER = choice(
    "owner",
    ("auto", "me", "keep", "tell"),
    "auto",
    "whose files are: mine, as stored (keep), or (auto) as stored where the view has that id, else mine; tell: mine,"
    " and the attribute viewfs.owner has what is stored",
)


class Owners(NamedTuple):
    """Which ids to show for a stored user id and a stored group id."""

    user: Callable[[int], int]
    group: Callable[[int], int]

    @classmethod
    def of(cls, owner: str, identities: Identities) -> Owners:
        """For a value of `OWNER`."""
        me, mine = identities.uid, identities.gid
        if owner == "keep":
            return AS_STORED
        if owner in ("me", "tell"):
            return cls(lambda _uid: me, lambda _gid: mine)
        uids, gids = identities.uids, identities.gids
        return cls(lambda uid: uid if uid in uids else me, lambda gid: gid if gid in gids else mine)

    def translate(self, attributes: Attributes) -> Attributes:
        """`attributes` with the ids to show."""
        user, group = self.user(attributes.uid), self.group(attributes.gid)
        if user == attributes.uid and group == attributes.gid:
            return attributes
        # Several times as fast as `_replace`; this runs for each file that is listed.
        return tuple.__new__(Attributes, (*attributes[:4], user, group, *attributes[6:]))


AS_STORED = Owners(lambda uid: uid, lambda gid: gid)
