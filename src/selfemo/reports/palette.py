"""One colour an emotion, in the chat, the report and the figures, on light and on dark pages.

The colours of a known label set of up to seven labels differ by 8 or more in CIELAB lightness from each
other, so that they can be told apart in grey and by colour-blind eyes; larger sets differ in hue alone, and
the largest repeat some. None is readable as text: names stand beside them, and light ones need an outline.
"""

from __future__ import annotations

from collections.abc import Iterable

UNKNOWN = "#a2a6ad"

_FAMILIES = {
    "fear": ("#663b92", ("fear", "scared", "afraid", "anxious", "fearful")),
    "sadness": ("#0569ab", ("sadness", "sad", "apologetic")),
    "anger": ("#e1393a", ("anger", "angry", "mad", "abusive")),
    "disgust": ("#4da25c", ("disgust", "disgusted", "dissatisfied")),
    "neutral": (UNKNOWN, ("neutral", "no emotion", "none", "other")),
    "surprise": ("#2ecff1", ("surprise", "surprised", "astonished")),
    "joy": ("#fbd83f", ("joy", "joyful", "happy", "happiness", "satisfied")),
    # In label sets that lack one of the lightness above.
    "peaceful": ("#08a295", ("peaceful", "calm", "acceptance", "relaxed")),
    "powerful": ("#ffac62", ("powerful", "excited", "excitement")),
    "frustrated": ("#e166a3", ("frustrated", "frustration")),
}
_KNOWN = {name: colour for colour, names in _FAMILIES.values() for name in names}
_COLOURS = tuple(dict.fromkeys(_KNOWN.values()))


def emotion_colours(labels: Iterable[str]) -> dict[str, str]:
    """The colour (#rrggbb) of each label of a set.

    A label of a known name always has the same one. The others, and a second name of one emotion, take in
    order the colours that are left, and when none is left all again.
    """
    names = list(labels)
    found: dict[str, str] = {}
    for name in names:
        colour = _KNOWN.get(name.lower())
        if colour is not None and colour not in found.values():
            found[name] = colour
    left = [c for c in _COLOURS if c not in found.values()] or list(_COLOURS)
    others = [name for name in names if name not in found]
    found |= {name: left[n % len(left)] for n, name in enumerate(others)}
    return {name: found[name] for name in names}
