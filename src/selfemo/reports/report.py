"""`selfemo report`: one self-contained HTML file of a run, with no script and no request to anywhere.

All text of data and models is untrusted: it is escaped, control characters and the marks that turn the
direction of writing are shown as their code points. The same inputs give the same bytes.
"""

from __future__ import annotations

import base64
import csv
import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from selfemo.config import Config, load
from selfemo.errors import DataError, StoreError
from selfemo.evaluation.analysis import analysis_table, read_analysis
from selfemo.evaluation.experiments import ablation_table, share_table, signal_table
from selfemo.evaluation.predictions import UNION, Scores, gold_prompts, score
from selfemo.evaluation.summary import HEADER as SCORES_HEADER
from selfemo.evaluation.summary import r1_change, table_rows
from selfemo.files import write_text
from selfemo.method.prompts import format_emotions
from selfemo.method.rewards import exact_match
from selfemo.method.types import LABEL_SETS, LabelSet, Prompt
from selfemo.reports import figures
from selfemo.reports.tables import measured, table1
from selfemo.runs.dialogues import Episode, episodes
from selfemo.runs.folder import COLD, CONFIG_FILE, START, checkpoints, evaluation_name
from selfemo.runs.inputs import load_conversations
from selfemo.runs.store import STORE_FILE, Store, read_distribution

TEMPLATE = "report.html.jinja"
_EXAMPLE = 600


# -- text and figures -----------------------------------------------------------------------------------


def visible(value: Any) -> Any:
    """Text without invisible powers: control and direction marks become [U+XXXX]; others stay."""
    if not isinstance(value, str) or hasattr(value, "__html__"):
        return value
    return "".join(
        f"[U+{ord(ch):04X}]"
        if unicodedata.category(ch) in ("Cc", "Cf", "Cs", "Zl", "Zp") and ch not in "\n\t"
        else ch
        for ch in value
    )


def inline_svg(path: Path, label: str) -> Any:
    """The drawing of an SVG file of ours, for use inside HTML; ids get the file's name before them."""
    from markupsafe import Markup, escape

    text = path.read_text(encoding="utf-8")
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    for pattern in (r'(\bid=")', r'(href="#)', r"(url\(#)"):
        text = re.sub(pattern, rf"\g<1>{path.stem}-", text)
    opening = re.match(r"<svg[^>]*>", text)
    assert opening is not None
    box = re.search(r'viewBox="[\d. -]+"', opening[0])
    assert box is not None
    head = (
        f'<svg {box[0]} role="img" aria-label="{escape(label)}" xmlns="http://www.w3.org/2000/svg" '
    )
    return Markup(head + 'xmlns:xlink="http://www.w3.org/1999/xlink">' + text[opening.end() :])


@dataclass
class Table:
    """Cells of text; `caption` says what they are."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[Any]]


@dataclass
class Section:
    """One part of the report; `missing` is the command that would fill it."""

    id: str
    title: str
    text: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    drawings: list[tuple[str, Any]] = field(default_factory=list)
    pictures: list[tuple[str, str]] = field(default_factory=list)
    episodes: list[dict[str, Any]] = field(default_factory=list)
    examples: list[dict[str, Any]] = field(default_factory=list)
    code: str = ""
    missing: str = ""


# -- what the run holds ---------------------------------------------------------------------------------


class Source:
    """A run read without changing it."""

    def __init__(self, folder: Path):
        if not (folder / CONFIG_FILE).exists() or not (folder / STORE_FILE).exists():
            raise StoreError(f"{folder} is not a run folder: `selfemo evolve` makes one")
        self.folder = folder
        self.config: Config = load([folder / CONFIG_FILE])
        self.store = Store(folder / STORE_FILE, read_only=True)
        self.labels = self._labels()
        self.scores: dict[str, dict[str, Scores]] = {
            name: score(self.store, evaluation_name(name), self.labels, self.config)
            for name in checkpoints(self.config)
            if (row := self.store.stage(evaluation_name(name))) is not None
            and row["status"] == "done"
        }
        self.last = next(reversed(self.scores), None)

    def _labels(self) -> dict[str, LabelSet]:
        """The label set of each data set with predictions, of its stored prompts or its name."""
        known = self.store.label_sets()
        wanted = self.store.predicted_datasets()
        return {d: s for d in sorted(wanted) if (s := known.get(d, LABEL_SETS.get(d))) is not None}

    def held_out_prompts(self) -> dict[str, Prompt]:
        """Prompts by id where the data can still be read; else none."""
        try:
            return {p.id: p for p in gold_prompts(load_conversations(self.config.data))}
        except DataError:
            return {}

    def rounds(self) -> list[dict[str, Any]]:
        """Means of both rewards over the rollouts of each RL round, self-played and original."""
        sums: dict[tuple[str, int], dict[str, Any]] = {}
        for r in self.store.rl_rollouts():
            if r.target is None:
                continue
            record = sums.setdefault((r.stage, r.step), {"iteration": r.iteration})
            tail = "_original" if r.original else ""
            hit = exact_match(r.emotion, r.target, r.label_set)
            record.setdefault("accuracy" + tail, []).append(hit)
            record.setdefault("r1" + tail, []).append(r.r1)
        return [
            {k: sum(v) / len(v) if isinstance(v, list) else v for k, v in record.items()}
            for record in sums.values()
        ]


def _read_json(path: Path, command: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise StoreError(f"{path}: cannot be read ({e}); `{command}` makes it") from None
    if not isinstance(content, dict):
        raise StoreError(f"{path}: not what `{command}` writes")
    return content


# -- sections -------------------------------------------------------------------------------------------


def _what_ran(source: Source) -> Section:
    config, stages = source.config, source.store.stages()
    about = [
        ("model", config.model.id),
        ("data", ", ".join(config.data.sources)),
        ("evaluated on", f"split {config.data.eval_split}, span {config.evaluation.span}"),
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
    section = Section("result", "Result")
    if source.last is None:
        section.missing = f"selfemo evolve --resume {source.folder}"
        return section
    change = (
        r1_change(source.store, COLD, source.last) if source.last not in (START, COLD) else None
    )
    if change is None:
        section.text = ["Only one trained checkpoint was evaluated: there is no change to report."]
    else:
        d = change.difference
        if d.low > 0:
            verdict = "rose"
        elif d.high < 0:
            verdict = "fell"
        else:
            verdict = "did not change beyond chance"
        section.text = [
            f"From {COLD} to {source.last}, mean R1 on the same held-out turns {verdict}: "
            f"{d.value:+.3f}, 95% interval {d.low:+.3f} to {d.high:+.3f}, p = {change.p_value:.3f} "
            "(paired, by conversation)."
        ]
    section.tables = [Table("Scores with 95% intervals", SCORES_HEADER, table_rows(source.scores))]
    return section


def _table1(places: Sequence[Path]) -> Section:
    header, rows = table1(places)
    return Section(
        "table1", "Beside the published results (table 1)",
        ["Rows marked as published are the paper's; they were not measured here."],
        [Table("Accuracy and weighted F1, per cent", header, rows)],
    )  # fmt: skip


def _curves(source: Source, folder: Path) -> Section:
    section = Section("curves", "Curves (figures 5 and 6)")
    held = {
        d: {
            c: (by[d].accuracy.value, by[d].mean_r1.value)
            for c, by in source.scores.items()
            if d in by
        }
        for d in source.labels
        if any(d in by for by in source.scores.values())
    }
    names = figures.reward_curves(folder, held, source.rounds())
    records = [m for m in source.store.metrics() if m["stage"].endswith("-rl")]
    names += figures.draw(folder, records, source.scores)
    titles = {
        "fig5_held_out": "Accuracy-based and IoU-based reward on held-out turns, by checkpoint",
        "fig5_self_play": "Both rewards of the rollouts by round of RL, self-played and original",
        "reward": "R1 and R2 by round of RL",
        "entropy": "Entropy of the policy by round of RL (figure 6, left)",
        "parse_rate": "Share of completions that parse, and of best ones that pass the gate",
    }
    for dataset in source.labels:
        titles[f"scores_{dataset}"] = f"Held-out scores by checkpoint: {dataset}"
        titles[f"emotions_{dataset}"] = f"Emotions read by checkpoint, beside gold: {dataset}"
    section.drawings = [(titles[n], n) for n in names]
    if not names:
        section.missing = f"selfemo evolve --resume {source.folder}"
    return section


def _analysis(source: Source, folder: Path) -> Section:
    section = Section("analysis", "Entropy by span, round trip, diversity (figure 6)")
    found = read_analysis(source.folder)
    if found is None or not found["checkpoints"]:
        section.missing = f"selfemo analyse {source.folder}"
        return section
    section.text = [
        f"One sampled completion for each of {len(found['prompts'])} held-out prompts. Round trip: what "
        "the checkpoint's own recogniser reads in its reply, against the emotion it declared."
    ]
    section.tables = [Table("By checkpoint, entropies in nats", *analysis_table(found))]
    name = figures.span_entropy(folder, found["checkpoints"])
    section.drawings = [("Mean token entropy of each span by checkpoint", name)]
    return section


def _ablation(place: Path | None, folder: Path) -> Section:
    section = Section("ablation", "Ablation (table 2)")
    command = "selfemo ablate --out DIR"
    if place is None:
        section.missing = command
        return section
    path = place / "ablation.json"
    try:
        found = _read_json(path, command)
        section.tables = [
            Table("Mean (sd) over seeds", *ablation_table(found)),
            Table("What each arm predicts, and how sure it is", *share_table(found)),
            Table("What its RL had to learn from: means over groups", *signal_table(found)),
        ]
        drawn = figures.arm_dots(folder, found["arms"])
    except (KeyError, TypeError, AttributeError) as e:
        raise StoreError(f"{path}: not what `{command}` writes ({e!r}); run it again") from None
    section.drawings = [("Accuracy by arm: each seed and their mean", drawn)]
    return section


_KINDS = {"self_emotion": "self-emotion", "reply": "reply"}


def _judge(places: Sequence[Path], folder: Path) -> Section:
    section = Section("judge", "Blind comparison by judges (figure 3)")
    command = "selfemo judge"
    if not places:
        section.missing = command
        return section
    bars: dict[str, Any] = {}
    rows = []
    for place in places:
        content = _read_json(place / "judge.json", command)
        try:
            for kind, c in content["kinds"].items():
                name = f"{place.name}: {_KINDS.get(kind, kind)}"
                bars[name] = {k: int(c[k]) for k in ("wins", "ties", "losses")}
                rate = c["win_rate"]
                rows.append(
                    [
                        f"{content['a']} against {content['b']}", _KINDS.get(kind, kind), c["wins"],
                        c["ties"], c["losses"], _interval(rate), _number(c.get("p_value")),
                        _number(c.get("alpha")), _number(c.get("position_bias")),
                        str(c.get("flips", "-")),
                    ]
                )  # fmt: skip
        except (KeyError, TypeError, ValueError, AttributeError) as e:
            raise StoreError(
                f"{place / 'judge.json'}: not what `{command}` writes ({e!r}); run it again"
            ) from None
    header = (
        "answers", "kind", "wins", "ties", "losses", "win rate", "p", "alpha", "position bias",
        "flips",
    )  # fmt: skip
    section.tables = [Table("Wins of the first", header, rows)]
    section.drawings = [
        ("Wins, ties and losses of each comparison", figures.judge_bars(folder, bars))
    ]
    return section


def _number(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, int | float) else "-"


def _interval(value: Any) -> str:
    if not isinstance(value, list) or len(value) != 3 or None in value:
        return "-"
    return f"{value[0]:.3f} [{value[1]:.3f}, {value[2]:.3f}]"


def _personas(source: Source, place: Path | None) -> Section:
    section = Section("personas", "Personas (figure 4, table 3)")
    by_cluster = [
        [r["name"], r["stage"], str(r["rollouts"]), f"{r['r1']:.3f}"]
        for r in source.store.reward_by_cluster()
    ]
    if by_cluster:
        header = ("cluster", "stage", "rollouts", "mean R1")
        section.tables.append(Table("Mean R1 by persona cluster (table 3)", header, by_cluster))
    if place is not None:
        try:
            with (place / "figures" / "persona_clusters.csv").open(
                newline="", encoding="utf-8"
            ) as f:
                header_, *rows = list(csv.reader(f))
            picture = base64.b64encode(
                (place / "figures" / "persona_map.png").read_bytes()
            ).decode()
        except (OSError, ValueError) as e:
            raise StoreError(
                f"{place}: holds no persona clusters ({e}); `selfemo personas cluster` makes them"
            ) from None
        section.tables.append(Table("Clusters", header_, rows))
        section.pictures.append(("Map of the largest persona clusters", picture))
    if not section.tables:
        section.missing = f"selfemo personas cluster FOLDER --run {source.folder}"
    return section


def _confusions(source: Source, places: Sequence[Path], folder: Path) -> Section:
    section = Section("errors", "Confusion and calibration")
    found: list[tuple[str, Mapping[str, Any]]] = []
    if source.last is not None:
        here = {d: s.as_dict() for d, s in source.scores[source.last].items()}
        found.append((source.last, here))
    found += [((m := measured(p)).name, m.scores) for p in places]
    for k, (name, by_set) in enumerate(found):
        for dataset, s in by_set.items():
            if dataset == UNION or "confusion" not in s:
                continue
            title = f"{name} on {dataset}"
            stem = f"{k}_{re.sub('[^A-Za-z0-9]', '_', dataset)}"
            section.drawings.append(
                (
                    f"Gold by predicted emotion: {title}",
                    figures.confusion_map(
                        folder, f"confusion_{stem}", _plain(title), s["confusion"]
                    ),
                )
            )
            c = s["calibration"]
            if not c["n"]:
                continue
            section.text.append(
                f"{title}: expected calibration error {c['ece']:.3f}, Brier {c['brier']:.3f}, "
                f"negative log-likelihood {c['nll']:.3f} nats"
                + (
                    f"; {c['nll_tempered']:.3f} at a temperature of {c['temperature']:.2f}."
                    if c.get("temperature")
                    else "."
                )
            )
            section.drawings.append(
                (
                    f"Weight of the top emotion and how often it is right: {title}",
                    figures.reliability(folder, f"reliability_{stem}", _plain(title), c),
                )
            )
    if not found:
        section.missing = f"selfemo evaluate {source.folder} --data SOURCE --out DIR"
    return section


def _plain(text: str) -> str:
    """A figure's title: no mathematics, nothing invisible."""
    return str(visible(text)).replace("$", r"\$")


def _emotion(distribution: Any) -> str:
    return "-" if distribution is None else format_emotions(distribution)


def _dialogues(source: Source, n: int = 10) -> Section:
    section = Section("dialogues", "Self-play dialogues")
    for e in episodes(source.store, n):
        section.episodes.append(_show(e))
    if section.episodes:
        section.text = [
            "The longest episodes. Each self-played turn shows what its speaker read in the turn before, "
            "what should have been read, and the emotion declared with the reply."
        ]
    else:
        section.missing = f"selfemo evolve --resume {source.folder}"
    return section


def _show(e: Episode) -> dict[str, Any]:
    def bar(d: Any) -> list[tuple[str, int, int]]:
        """(emotion, its place in the label set, per cent)"""
        if d is None:
            return []
        return [(k, e.label_set.index(k) % 8, round(100 * d[k])) for k in e.label_set if k in d]

    return {
        "name": e.conversation,
        "scenario": e.scenario,
        "history": [(u.speaker, u.text, _emotion(u.emotion)) for u in e.history],
        "played": [
            {
                "speaker": t.speaker, "reply": t.reply, "of": t.interlocutor, "r1": f"{t.r1:.2f}",
                "read": _emotion(t.read), "target": _emotion(t.target), "own": _emotion(t.own),
                "bars": [("read", bar(t.read)), ("target", bar(t.target)), ("felt", bar(t.own))],
            }
            for t in e.played
        ],
    }  # fmt: skip


def _examples(source: Source, n: int = 5) -> Section:
    section = Section("examples", "Worst and best held-out examples by R1")
    if source.last is None:
        section.missing = f"selfemo evolve --resume {source.folder}"
        return section
    rows = source.store.predictions(evaluation_name(source.last))
    rows.sort(key=lambda r: (r["r1"], r["prompt"]))
    prompts = source.held_out_prompts()
    chosen = [("worst", r) for r in rows[:n]]
    chosen += [("best", r) for r in reversed(rows[max(n, len(rows) - n) :])]
    for which, r in chosen:
        prompt = prompts.get(r["prompt"])
        last = prompt.history[-1] if prompt is not None else None
        section.examples.append(
            {
                "title": f"{which}: {r['prompt']}, R1 {r['r1']:.2f}",
                "said": f"{last.speaker}: {last.text}"
                if last
                else "(the data cannot be read here)",
                "facts": [
                    ("gold", _emotion(read_distribution(r["gold"]))),
                    ("read", r["failure"] or _emotion(read_distribution(r["predicted"]))),
                ],
                "text": r["text"][:_EXAMPLE],
            }
        )
    return section


def _failures(source: Source) -> Section:
    section = Section("failures", "Failures and gate drops")
    found = source.store.failures()
    kinds = [[f.kind, f.place, str(f.n), f.example[:200]] for f in found]
    kinds.sort(key=lambda k: (-int(k[2]), k[0], k[1]))
    section.tables = [
        Table("Failures by kind", ("kind", "where", "count", "first example"), kinds),
        Table(
            "Best rollouts at the gate", ("stage", "verdict", "count"),
            [[v.stage, v.verdict or "-", str(v.n)] for v in source.store.verdicts_by_stage()],
        ),
    ]  # fmt: skip
    section.tables = [t for t in section.tables if t.rows]
    if not section.tables:
        section.text = ["Nothing failed and nothing was dropped."]
    return section


def build(
    run: Path,
    out: Path,
    *,
    judges: Sequence[Path] = (),
    ablation: Path | None = None,
    evaluations: Sequence[Path] = (),
    personas: Path | None = None,
) -> list[Path]:
    """Write the report to `out`, and its figures (SVG, PNG, CSV) to the folder OUT-figures beside it.

    Returns:
        What was written: the report and the folder of the figures.

    Raises:
        StoreError: a folder is not what it is named as, or the report cannot be written.
    """
    from jinja2 import Environment, StrictUndefined

    source = Source(run)
    folder = out.parent / f"{out.stem}-figures"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        places = [*([run] if source.last is not None else []), *evaluations]
        # Folders that were named are read first: a wrong one is told before anything is drawn.
        judged, described = _judge(judges, folder), _personas(source, personas)
        ablated = _ablation(ablation, folder)
        sections = [
            _headline(source),
            _what_ran(source),
            _table1(places),
            _curves(source, folder),
            _analysis(source, folder),
            ablated,
            judged,
            described,
            _confusions(source, evaluations, folder),
            _dialogues(source),
            _examples(source),
            _failures(source),
            Section(
                "config", "Resolved configuration",
                code=(run / CONFIG_FILE).read_text(encoding="utf-8"),
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
        template = Environment(
            autoescape=True, finalize=visible, undefined=StrictUndefined, trim_blocks=True,
            lstrip_blocks=True,
        ).from_string(files("selfemo.reports").joinpath(TEMPLATE).read_text(encoding="utf-8"))  # fmt: skip
        html = template.render(name=run.resolve().name, sections=sections)
        write_text(out, html.encode(errors="replace").decode())
    except OSError as e:
        raise StoreError(f"{out}: cannot be written: {e.strerror or e}") from e
    finally:
        source.store.close()
    return [out, folder]
