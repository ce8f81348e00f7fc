"""`selfemo report`: one self-contained HTML file of a run, with no script and no request to anywhere.

All text of data and models is untrusted: it is escaped, and control characters and marks that change the
direction of writing are shown as their code points. The same inputs give the same bytes.

This file has the sections on the run itself, lead.py its first sentences, turns.py what was said and read,
sections.py the sections on other folders, page.py the parts of a page.
"""

from __future__ import annotations

import re
import shlex
from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from selfemo.config import Config, load
from selfemo.errors import DataError, StoreError
from selfemo.evaluation.analysis import analysis_table
from selfemo.evaluation.changes import (
    CHANGE_HEADER,
    CHANGE_NOTE,
    change_line,
    change_rows,
    stage_changes,
    whole_change,
)
from selfemo.evaluation.free_changes import FREE_HEADER, FREE_NOTE, free_rows
from selfemo.evaluation.predictions import gold_prompts, label_sets
from selfemo.evaluation.readers import GIVEN, REAL
from selfemo.evaluation.reading import read_analysis
from selfemo.evaluation.reading_tables import (
    BLIND_HEADER,
    CLUSTER_HEADER,
    EMOTION_HEADER,
    READING_HEADER,
    READING_NOTE,
    blind_tables,
    cluster_rows,
    emotion_rows,
    example_header,
    example_rows,
    read_data,
    read_of_last,
    reading_rows,
)
from selfemo.evaluation.summary import (
    HEADER,
    SUMMARY_FILE,
    checkpoint_scores,
    constants_part,
    free_by_checkpoint,
    overlap_part,
    overlap_tables,
    plain,
    rl_rounds,
    table_rows,
)
from selfemo.files import replacing_folder, write_text
from selfemo.method.rewards import exact_match
from selfemo.method.types import LABEL_SETS, Conversation, Prompt
from selfemo.reports import figures, turns
from selfemo.reports import sections as parts
from selfemo.reports.lead import Facts, sentences
from selfemo.reports.page import Section, Table, headed, inline_svg, render, visible
from selfemo.runs.dialogues import NO_DIALOGUE, episodes
from selfemo.runs.folder import CONFIG_FILE, checkpoints, evaluation_name
from selfemo.runs.inputs import load_conversations
from selfemo.runs.rollback import choice_lines
from selfemo.runs.settings import data_of
from selfemo.runs.store import STORE_FILE, Store


class Source:
    """A run that is read and not changed.

    Attributes:
        labels: the label set of each data set with predictions, from its stored prompts, the run's data, or
            its name.
        last: the last checkpoint with scores; None where there is none.
        split: what is evaluated on.
        changes: what each stage added (`changes.stage_changes`).
        change: what the run added to its cold start (`changes.whole_change`).
    """

    def __init__(self, folder: Path):
        if not (folder / CONFIG_FILE).exists() or not (folder / STORE_FILE).exists():
            raise StoreError(f"{folder} is not a run folder: `selfemo evolve` makes one")
        self.folder = folder
        self.called = shlex.quote(str(folder))
        self.resume = f"selfemo evolve --resume {self.called}"
        self.config: Config = load([folder / CONFIG_FILE])
        reader = shlex.quote(self.config.reward.reader or "ENCODER")
        self.read_replies = f"selfemo analyse {self.called} --reader {reader}"
        self.finished = (folder / SUMMARY_FILE).exists()
        self.store = Store(folder / STORE_FILE, read_only=True)
        known, wanted = self.store.label_sets(), self.store.predicted_datasets()
        named = {**LABEL_SETS, **label_sets(self.conversations), **known}
        self.labels = {d: named[d] for d in wanted if d in named}
        self.scores = checkpoint_scores(
            self.store, checkpoints(self.config), self.labels, resamples=self.config.evaluation.resamples
        )
        self.last = next(reversed(self.scores), None)
        self.split = self.config.data.evaluated_on
        self.changes = stage_changes(self.config, self.store, self.labels)
        self.change = None if self.last is None else whole_change(self.store, self.labels, self.last)

    def facts(self) -> Facts:
        """What the first sentences are made of."""
        return Facts(
            self.config, self.store.stages(), plain(self.scores), self.changes, self.change, self.finished,
            self.resume, self.constants, self.analysis, self.read_replies,
        )  # fmt: skip

    def overlap(self) -> dict[str, Any] | None:
        """The overlap with the training data, and the scores without it (`summary.overlap_part`)."""
        resamples = self.config.evaluation.resamples
        return overlap_part(self.folder, self.store, list(self.scores), self.labels, resamples)

    @cached_property
    def conversations(self) -> list[Conversation]:
        """The run's data; empty where they can no longer be read."""
        try:
            return load_conversations(data_of(self.folder))
        except DataError:
            return []

    @cached_property
    def analysis(self) -> dict[str, Any] | None:
        """What `selfemo analyse` wrote; None for nothing."""
        return read_analysis(self.folder)

    @cached_property
    def constants(self) -> dict[str, Any]:
        """Constant answers beside the scores (`summary.constants_part`)."""
        resamples = self.config.evaluation.resamples
        return constants_part(self.store, list(self.scores), self.labels, self.conversations, resamples)

    def held_out_prompts(self) -> dict[str, Prompt]:
        """Prompts by id; empty where the data can no longer be read."""
        return {p.id: p for p in gold_prompts(self.conversations)}

    def rounds(self) -> list[dict[str, Any]]:
        """Means of both rewards over the rollouts of each RL round, self-played and original."""
        found: dict[tuple[str, int, int], dict[str, list[float]]] = {}
        for r in self.store.rl_rollouts():
            if r.target is None:
                continue
            values = found.setdefault((r.stage, r.step, r.iteration), defaultdict(list))
            tail = "_original" if r.original else ""
            values["accuracy" + tail].append(exact_match(r.emotion, r.target, r.label_set))
            values["r1" + tail].append(r.r1)
        return [
            {"iteration": iteration, **{k: sum(v) / len(v) for k, v in values.items()}}
            for (_, _, iteration), values in found.items()
        ]


def _what_ran(source: Source) -> Section:
    config, stages = source.config, source.store.stages()
    about = [
        ("model", config.model.id),
        ("data", ", ".join(config.data.sources)),
        ("evaluated on", f"split {config.data.evaluated_on}, span {config.evaluation.span}"),
        ("seed", str(config.seed)),
        ("group size G", str(config.sampling.group_size)),
        ("iterations", str(config.flywheel.iterations)),
        ("reward", f"{config.reward.primary}, secondary {config.reward.secondary}"),
        ("lambda at the end", str(config.grpo.lam_max)),
        ("refit", config.flywheel.refit),
        ("made with", _version(source.folder)),
    ]
    spent = [[r["name"], r["status"], f"{r['seconds']:.0f}"] for r in stages]
    total = sum(r["seconds"] for r in stages)
    return Section(
        "run", "What ran",
        tables=[
            Table("The run", ("setting", "value"), about),
            Table("Stages", ("stage", "status", "seconds"), [*spent, ["all", "", f"{total:.0f}"]]),
        ],
    )  # fmt: skip


def _version(folder: Path) -> str:
    first = (folder / CONFIG_FILE).read_text(encoding="utf-8").split("\n", 1)[0]
    found = re.fullmatch(r"# (selfemo \S+), resolved", first)
    return found[1] if found else "unknown"


def _headline(source: Source) -> Section:
    if source.last is None:
        return Section("result", "Result", missing=source.resume)
    text = change_line(source.change)
    if source.change:
        text += (
            ". Changes on the same held-out turns, with 95% intervals and p by conversation; RL and refits "
            "together, what each stage added by itself stands below."
        )
    beside = source.constants
    rows = table_rows(plain(source.scores), beside["constants"])
    tables = [headed("Scores with 95% intervals", HEADER, rows, source.split)]
    said = [text, *beside["constants_said"]]
    if part := source.overlap():
        tables += [headed(*t, source.split) for t in overlap_tables(part)]
        said.append(f"{part['line']}.")
    return Section("result", "Result", said, tables)


def _stages(source: Source) -> Section:
    if not source.changes:
        return Section("stages", "What each stage added", missing=source.resume)
    counts = {d: by["utterances"] for c in source.changes for d, by in c["by"].items()}
    rows = change_rows(source.changes)
    table = headed("Change by stage, with 95% intervals", CHANGE_HEADER, rows, source.split, counts)
    said = [CHANGE_NOTE, *choice_lines(source.config, source.store)]
    return Section("stages", "What each stage added", said, [table])


def _free(source: Source) -> Section:
    title, resamples = (
        "What a free change of the same checkpoint would give",
        source.config.evaluation.resamples,
    )
    found = free_by_checkpoint(source.store, source.scores, source.labels, resamples)
    if not found:
        return Section("free", title, missing=source.resume)
    counts = {d: s.utterances for by in source.scores.values() for d, s in by.items()}
    caption = "Scores with 95% intervals, without any training"
    table = headed(caption, FREE_HEADER, free_rows(found), source.split, counts)
    return Section("free", title, [FREE_NOTE], [table])


def _curves(source: Source, folder: Path) -> Section:
    held = {
        d: {c: (by[d].accuracy.value, by[d].mean_r1.value) for c, by in source.scores.items() if d in by}
        for d in source.labels
    }
    names = figures.reward_curves(folder, {d: by for d, by in held.items() if by}, source.rounds())
    names += figures.draw(folder, rl_rounds(source.store), source.scores)
    titles = {
        "fig5_held_out": "Accuracy-based and IoU-based reward on held-out turns, by checkpoint",
        "fig5_self_play": "Both rewards of the rollouts by round of RL, self-played and original",
        "reward": "R1 and R2 by round of RL",
        "entropy": "Entropy of the policy by round of RL (figure 6, left)",
        "parse_rate": "Share of completions that parse, and of best ones that pass the gate",
        "expression": "R3 by round of RL: above 0, replies tell more of the declared emotion than expected",
        "replies": "The replies that R3 compares, by round of RL",
    }
    for dataset in source.labels:
        titles[f"scores_{dataset}"] = f"Held-out scores by checkpoint: {dataset}"
        titles[f"emotions_{dataset}"] = f"Emotions read by checkpoint, beside gold: {dataset}"
    drawings, missing = [(titles[n], n) for n in names], "" if names else source.resume
    return Section("curves", "Curves (figures 5 and 6)", drawings=drawings, missing=missing)


def _analysis(source: Source, folder: Path) -> Section:
    title, found = "Entropy by span, round trip, diversity (figure 6)", source.analysis
    if found is None or not found["checkpoints"]:
        return Section("analysis", title, missing=f"selfemo analyse {source.called}")
    text = (
        f"One sampled completion for each of {len(found['prompts'])} held-out prompts. Round trip: the "
        "emotion that the checkpoint itself recognises in its reply, against the emotion it declared. It is "
        "perfect where a checkpoint declares and recognises one emotion throughout."
    )
    table = Table("By checkpoint, entropies in nats", *analysis_table(found))
    name = figures.span_entropy(folder, found["checkpoints"])
    return Section(
        "analysis", title, [text], [table], [("Mean token entropy of each span by checkpoint", name)]
    )


def _expression(source: Source) -> Section:
    title, found = "Is the declared emotion found in the reply?", source.analysis
    if found is None or not found["readers"]:
        return Section("expression", title, missing=source.read_replies)
    section = Section("expression", title, [READING_NOTE])
    prompts, split = source.held_out_prompts(), found["split"]
    for reference, reading in found["readers"].items():
        for dataset in read_data(reading):
            of = f"{dataset}, {split}, read by {reference}"
            rows = reading_rows(found, reading, dataset)
            section.tables.append(Table(f"By checkpoint: {of}", READING_HEADER, rows))
            for title, blind in blind_tables(reading, dataset):
                section.tables.append(Table(f"{title}: {of}", BLIND_HEADER, blind))
            for name in (*read_of_last(found, reading, dataset), REAL):
                record = reading["expression"].get(name, {}).get(dataset, {})
                for what, header, of_record in (
                    ("declared emotion", EMOTION_HEADER, emotion_rows(record)),
                    ("persona cluster", CLUSTER_HEADER, cluster_rows(record)),
                ):
                    if of_record:
                        section.tables.append(Table(f"{name}, by {what}: {of}", header, of_record))
        written = [c for c in found["checkpoints"] if found["replies"].get(c)]
        pair = list(dict.fromkeys((*written[:1], *written[-1:])))
        for end in ("", GIVEN):
            of_pair = [name + end for name in pair if name + end in found["replies"]]
            if of_pair:
                examples = example_rows(found, reading, prompts, of_pair, source.config.seed)
                caption = f"Replies to the same prompts{end}, drawn by the run's seed: read by {reference}"
                section.tables.append(Table(caption, example_header(of_pair), examples))
    return section


def _dialogues(source: Source, n: int = 10) -> Section:
    found = [turns.episode(e) for e in episodes(source.store, n)]
    if not found:
        if not source.finished:
            return Section("dialogues", "Self-play dialogues", missing=source.resume)
        return Section("dialogues", "Self-play dialogues", [NO_DIALOGUE])
    text = (
        "The longest episodes. Each self-played turn shows what its speaker read in the turn before, "
        "what should have been read, and the emotion declared with the reply."
    )
    return Section("dialogues", "Self-play dialogues", [text], episodes=found)


def _examples(source: Source, n: int = 5) -> Section:
    section = Section("examples", "Worst and best held-out examples by R1")
    if source.last is None:
        section.missing = source.resume
        return section
    rows = [
        r for r in source.store.predictions(evaluation_name(source.last)) if r["dataset"] in source.labels
    ]
    prompts, written = source.held_out_prompts(), source.config.evaluation.span != "probabilities"
    section.examples = turns.examples(rows, prompts, source.labels, n, written=written)
    section.text = [
        f"Turns that {source.last} reads worst and best, each from another conversation while there are any. "
        "The turn in question comes last; the weights of gold and of what was read are in per cent."
    ]
    if not prompts:
        section.text.append("The texts are left out: the run's data cannot be read here.")
    return section


def _failures(source: Source) -> Section:
    found = sorted(source.store.failures(), key=lambda f: (-f.n, f.kind, f.place))
    kinds = [[f.kind, f.place, str(f.n), f.example[:200]] for f in found]
    verdicts = [[v.stage, v.verdict or "-", str(v.n)] for v in source.store.verdicts_by_stage()]
    tables = [
        Table("Failures by kind", ("kind", "where", "count", "first example"), kinds),
        Table("Best rollouts at the gate", ("stage", "verdict", "count"), verdicts),
    ]
    tables = [t for t in tables if t.rows]
    text = [] if tables else ["Nothing failed and nothing was dropped."]
    return Section("failures", "Failures and gate drops", text, tables)


def build(
    run: Path,
    out: Path,
    *,
    judges: Sequence[Path] = (),
    ablation: Path | None = None,
    evaluations: Sequence[Path] = (),
    personas: Path | None = None,
) -> list[Path]:
    """Write the report to `out`, and its figures (SVG, PNG, CSV) to OUT-figures beside it; returns both.

    The other folders are those of `selfemo judge`, `ablate`, `evaluate --out` and `personas cluster`.

    Raises:
        StoreError: a folder does not hold what its command writes, or the report cannot be written.
    """
    if out.is_dir():
        raise StoreError(f"{out} is a folder; give --out the name of the HTML file")
    target = out.parent / f"{out.stem}-figures"
    source = Source(run)
    try:
        # A wrong folder is named before anything is drawn; what cannot be finished leaves no figures.
        with replacing_folder(target) as folder:
            html = _page(source, folder, judges, ablation, evaluations, personas)
        write_text(out, html.encode(errors="replace").decode())
    finally:
        source.store.close()
    return [out, target]


def _page(
    source: Source,
    folder: Path,
    judges: Sequence[Path],
    ablation: Path | None,
    evaluations: Sequence[Path],
    personas: Path | None,
) -> str:
    """The page as HTML; its figures go to `folder`."""
    run = source.folder
    table1 = parts.table1([run, *evaluations] if source.last is not None else evaluations)
    judged = parts.judge(judges, folder)
    described = parts.personas(source.store.reward_by_cluster(), run, personas, folder)
    ablated = parts.ablation(ablation, folder)
    own = plain({c: s for c, s in source.scores.items() if c == source.last})
    sections = [
        _headline(source),
        _stages(source),
        _free(source),
        _what_ran(source),
        table1,
        _curves(source, folder),
        _analysis(source, folder),
        _expression(source),
        ablated,
        judged,
        described,
        parts.confusions(own, run, evaluations, folder),
        _dialogues(source),
        _examples(source),
        _failures(source),
        Section(
            "config", "Resolved configuration",
            code=(run / CONFIG_FILE).read_text(encoding="utf-8"), folded=True,
        ),
        Section(
            "again", "How to reproduce",
            ["Save the configuration above as config.toml, then:"],
            code="selfemo evolve --config config.toml --out NEW_RUN\nselfemo analyse NEW_RUN\n"
            "selfemo report NEW_RUN --out report.html\n",
        ),
    ]  # fmt: skip
    for section in sections:
        section.drawings = [
            (title, inline_svg(folder / f"{name}.svg", str(visible(title))))
            for title, name in section.drawings
        ]
    return render(run.resolve().name, sentences(source.facts()), sections)
