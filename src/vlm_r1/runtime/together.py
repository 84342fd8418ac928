"""Rows that keep processes together: each runs as many as the others, and the tower where the others do.

Sharded modules are collectives. A process without a row, or without an image in one, runs a small prefix group whose
tokens count nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from vlm_r1.models.packing import PrefixGroup, make_prefix_group
from vlm_r1.runtime.session import Session


def fill_rows(session: Session, rows: Sequence[Sequence[PrefixGroup]]) -> list[list[PrefixGroup]]:
    """The rows of this process, with fillers at their ends, as many as any process has. Every process calls it."""
    world = session.world
    filled = [list(row) for row in rows]
    if world.size == 1:
        return filled
    count, images = world.maximum(len(rows), any(group.all_images for row in rows for group in row))
    parts = session.loaded.family.parameters()
    sees = bool(images) and any(p.requires_grad for part in ("vision", "connector") for p in parts[part].values())
    filled += [[] for _ in range(int(count) - len(filled))]
    for row in filled:
        if not row or (sees and not any(group.all_images for group in row)):
            row.append(filler(session, image=sees))
    return filled


def filler(session: Session, *, image: bool) -> PrefixGroup:
    """A small prompt, with or without an image, and one token that it predicts."""
    prompt = session.loaded.family.filler(image=image)
    return make_prefix_group([prompt], [[session.loaded.family.end_token_id]])
