"""How like people's turns replies are in length (SPEC section 10 [ours]).

The shortest way to show an emotion is an exclamation, and nothing in R3 asks for more: a policy comes to say
"What?!" to everything. Each reply may be what a person says; all of them together are not. So a reply is
asked how surely its length would be taken for that of a person's turn:

    gain(r) = log 2 P(x) / (P(x) + Q(x)),    x: length of r, P: its share among people's turns,
                                             Q: among the replies to other prompts

P / (P + Q) is what the best discriminator says that looks at lengths alone (Goodfellow et al. 2014,
proposition 1); the 2 makes it 0 nats where people and policy have x equally often. A length that is had too
seldom gains at most log 2; one that is had k times too often loses log (1 + k) / 2. The mean over a policy's
replies is -KL(Q || (P + Q) / 2): at most 0, and less the surer they are told from people's turns.

Lengths are in words and punctuation marks, in steps of half an octave. The same of words was tried: it pays
for any word that people seldom use, and the policy took to inventing some.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

from selfemo.method.diversity import words

Lengths = Counter[int]
"""How often each step of length occurs."""


def _step(length: int) -> int:
    return math.floor(2 * math.log2(length))


def lengths_of(texts: Iterable[str]) -> Lengths:
    """The lengths of some texts; one without a word has none."""
    return Counter(_step(n) for t in texts if (n := len(words(t))))


def length_gain(reply: str, people: Lengths, others: Lengths) -> float:
    """How like a person's turn a reply is in length beside other replies, nats, at most log 2; 0 where there
    is no other reply, or no word in it.

    Args:
        people: lengths of people's turns.
        others: of the replies that it stands beside, to other prompts.
    """
    n = len(words(reply))
    if not n or not others:
        return 0.0
    # Half a turn more of each length, and of one that nobody had: people have not said everything yet.
    p = (people[_step(n)] + 0.5) / (people.total() + 0.5 * (len(people) + 1))
    q = others[_step(n)] / others.total()
    return math.log(2 * p / (p + q))
