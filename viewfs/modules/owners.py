"""Whose the files of an image are in a view: the ids that it stores, translated to those that the view has."""

from __future__ import annotations

from collections.abc import Callable

from viewfs.modules.api import Attributes, Identities
from viewfs.modules.options import choice

__all__ = ["OWNER", "translation"]

#: The option of every module that reads ids from its source.
OWNER = choice(
    "owner",
    ("auto", "me", "keep"),
    "auto",
    "whose files are: mine, as stored (keep), or (auto) as stored where the view has that id, else mine",
)


def translation(owner: str, identities: Identities) -> Callable[[Attributes], Attributes]:
    """What to do to the attributes that are stored, for a value of `OWNER`."""
    me, mine = identities.uid, identities.gid
    if owner == "keep":
        return lambda attributes: attributes
    if owner == "me":
        return lambda attributes: attributes._replace(uid=me, gid=mine)
    uids, gids = identities.uids, identities.gids

    def translate(attributes: Attributes) -> Attributes:
        uid = attributes.uid if attributes.uid in uids else me
        gid = attributes.gid if attributes.gid in gids else mine
        return attributes._replace(uid=uid, gid=gid)

    return translate
