"""Baselines by name, each a recipe in a file of its own: `BASELINES` is their registry.

Nothing is imported here but what the command line can show in half a second.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from selfemo.errors import ConfigError

if TYPE_CHECKING:
    from selfemo.evaluation.baselines.base import Baseline


@dataclass(frozen=True)
class Entry:
    """A line of the registry; the recipe's file is loaded when it is asked for.

    Attributes:
        where: its class, as "file:Class" in this package.
        title: its name in the literature.
        what: what it is, in a line.
        source: where its recipe is from.
    """

    where: str
    title: str
    what: str
    source: str = "-"

    def load(self) -> type[Baseline[Any]]:
        file, _, name = self.where.partition(":")
        found: type[Baseline[Any]] = getattr(import_module(f"{__name__}.{file}"), name)
        return found


BASELINES: dict[str, Entry] = {
    "majority": Entry("constant:Majority", "majority label", "the most frequent label, always"),
    "prior": Entry("constant:Prior", "label shares", "the share of each label, always"),
    "tfidf": Entry("tfidf:Tfidf", "TF-IDF", "logistic regression on words of the turn and earlier ones"),
    "embeddings": Entry(
        "embeddings:Embeddings", "frozen embeddings", "logistic regression on embeddings of a frozen encoder"
    ),
    "encoder": Entry(
        "encoder:Encoder", "EmoBERTa's recipe", "a fine-tuned encoder: earlier turns, separator, the turn",
        "Kim and Vossen 2021, tae898/erc",
    ),
    "spcl": Entry(
        "spcl:Spcl", "SPCL", "a prompted encoder, contrasted with prototypes of labels",
        "Song et al. 2022, caskcsg/SPCL",
    ),
    "dialogue-rnn": Entry(
        "dialogue_rnn:DialogueRnn", "DialogueRNN", "recurrent states of context, parties and emotion",
        "Majumder et al. 2019, declare-lab/conv-emotion",
    ),
    "dialogue-gcn": Entry(
        "dialogue_gcn:DialogueGcn", "DialogueGCN", "a graph of turns in a window, by speakers and order",
        "Ghosal et al. 2019, declare-lab/conv-emotion",
    ),
    "dag-erc": Entry(
        "dag_erc:DagErc", "DAG-ERC", "a graph of turns since the speaker's last one",
        "Shen et al. 2021, shenwzh3/DAG-ERC",
    ),
    "cosmic": Entry(
        "cosmic:Cosmic", "COSMIC (no external knowledge)", "recurrent states of what goes on in each party",
        "Ghosal et al. 2020, declare-lab/conv-emotion",
    ),
    "instruct-erc": Entry(
        "instruct_erc:InstructErc", "InstructERC",
        "a causal model, taught who speaks before it learns labels",
        "Lei et al. 2023, LIN-SHANG/InstructERC",
    ),
    "bios-erc": Entry(
        "bios_erc:BiosErc", "BiosERC", "a causal model that is told who the speaker is",
        "Xue et al. 2024, yingjie7/BiosERC",
    ),
    "prc-emo": Entry(
        "prc_emo:PrcEmo", "PRC-Emo",
        "a causal model with demonstrations, taught few shifts first",
        "Li et al. 2026, LiXinran6/PRC-Emo",
    ),
}  # fmt: skip


def baseline(name: str) -> type[Baseline[Any]]:
    """The class of a baseline (ConfigError: there is none of that name)."""
    if name not in BASELINES:
        near = difflib.get_close_matches(name, BASELINES, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(f"no baseline {name!r}; {hint}There are: {', '.join(BASELINES)}")
    return BASELINES[name].load()
