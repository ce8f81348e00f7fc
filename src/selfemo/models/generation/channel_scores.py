"""The noisy channel: how probable a given reply is after each self-emotion (SPEC section 9 [ours])."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

from selfemo.method.channel import ChannelScores
from selfemo.method.types import LabelSet
from selfemo.models.generation.branches import BranchLogp
from selfemo.models.policy import Encoder


def channel_scores(
    reader: Encoder,
    places: Sequence[tuple[Hashable, Sequence[int], str, str]],
    labels: LabelSet,
    score: BranchLogp,
) -> list[ChannelScores]:
    """log p(S) and log p(r | S) for each label as S, at each place (`ChannelPlace`).

    The sequence of a label is what a sample of the cold start would be: the text so far, the label, the reply
    line, the end token. A token belongs to the line of its first character: the S line is closed by its line
    end, so that "sad" is not the beginning of "sadly", and the reply line by the end token.

    Args:
        reader, score: of the model.

    Raises:
        ValueError: a text so far does not end in "S:".
    """
    heads, starts, ends = [], [], []
    for _, _, written, reply in places:
        if not written.endswith("S:"):
            raise ValueError(f"a channel place is written up to S:, not {written!r}")
        encoded = [reader.encode_completion(f"{written} {e}\nR: {reply}") for e in labels]
        heads.append([ids for ids, _ in encoded])
        starts.append(min(sum(end <= len(written) for _, end in offsets) for _, offsets in encoded))
        ends.append(
            [
                sum(first <= len(written) + 1 + len(e) for first, _ in offsets)
                for e, (_, offsets) in zip(labels, encoded, strict=True)
            ]
        )
    asked = [(key, ids, head) for (key, ids, _, _), head in zip(places, heads, strict=True)]
    found = score(asked, starts)
    return [
        ChannelScores(
            tuple(math.fsum(b[: end - start]) for b, end in zip(branches, mine, strict=True)),
            tuple(math.fsum(b[end - start :]) for b, end in zip(branches, mine, strict=True)),
        )
        for branches, start, mine in zip(found, starts, ends, strict=True)
    ]
