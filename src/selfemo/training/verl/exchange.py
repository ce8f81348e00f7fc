"""Files between this process and verl: prompts and samples as Parquet, completions and metrics as JSON."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfemo.errors import DataError, EngineError
from selfemo.extras import require
from selfemo.files import replacing
from selfemo.method.prompts import Fitted, Reasoning, messages
from selfemo.method.types import EmotionDistribution, LabelSet, Prompt
from selfemo.models.policy import ChatTokenizer
from selfemo.training.whole_replies import prompt_of, reply_columns


@dataclass(frozen=True)
class Task:
    """The parts of a prompt that the reward function needs: its id, label set and target.

    Attributes:
        shown: `whole_replies.reply_columns`, for a listener; None where none listens.
    """

    prompt: str
    labels: LabelSet
    target: EmotionDistribution
    shown: Mapping[str, Any] | None = None

    def to_json(self) -> str:
        labels = [self.labels.name, list(self.labels.labels)]
        found = {"prompt": self.prompt, "labels": labels, "target": dict(self.target)}
        return json.dumps(found if self.shown is None else found | {"shown": self.shown})

    @staticmethod
    def from_json(text: str) -> Task:
        raw = json.loads(text)
        name, labels = raw["labels"]
        target = EmotionDistribution(raw["target"])
        return Task(raw["prompt"], LabelSet(name, tuple(labels)), target, raw.get("shown"))

    def heard_prompt(self) -> Prompt:
        """What a listener is asked about (EngineError: the task was written for none)."""
        if self.shown is None:
            raise EngineError(f"prompt {self.prompt}: its task has no history for a listener; draw it again")
        name, labels = self.labels.name, self.labels.labels
        return prompt_of({"prompt_id": self.prompt, "label_set": name, "labels": labels, **self.shown})


def _chat(prompt: Prompt, reader: ChatTokenizer, reasoning: Reasoning) -> list[dict[str, str]]:
    """The messages for which verl's chat template gives the local engine's prompt ids."""
    return [{**m, "content": reader.defused(m["content"])} for m in messages(prompt, reasoning)]


def prompt_rows(
    fitted: Sequence[Fitted], reader: ChatTokenizer, reasoning: Reasoning, *, heard: bool = False
) -> list[dict[str, Any]]:
    """Rows of verl's RL data sets (DataError: a prompt has no target).

    Args:
        heard: a listener hears the replies, and needs to know what they answer.
    """
    rows = []
    for i, f in enumerate(fitted):
        if f.prompt.target is None:
            raise DataError(f"prompt {f.prompt.id} has no target emotion to score against")
        shown = reply_columns(f.prompt) if heard else None
        task = Task(f.prompt.id, f.prompt.label_set, f.prompt.target, shown)
        rows.append(
            {
                "data_source": f.prompt.dataset,
                "prompt": _chat(f.prompt, reader, reasoning),
                "ability": "emotion",
                "reward_model": {"style": "rule", "ground_truth": task.to_json()},
                "extra_info": {"index": i, "prompt": f.prompt.id},
            }
        )
    return rows


def sft_rows(
    samples: Sequence[tuple[Prompt, str]], reader: ChatTokenizer, reasoning: Reasoning
) -> list[dict[str, Any]]:
    """Rows of verl's supervised data sets: the chat with the completion as its last message."""
    rows = []
    for prompt, completion in samples:
        answer = {"role": "assistant", "content": reader.defused(completion)}
        rows.append({"messages": [*_chat(prompt, reader, reasoning), answer]})
    return rows


def write_parquet(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as a whole file (EngineError: it cannot be written; MissingExtraError: no pyarrow)."""
    require("the files of verl", "pyarrow")
    import pyarrow as pa
    import pyarrow.parquet as pq

    with replacing(path, EngineError) as staging:
        pq.write_table(pa.Table.from_pylist(list(rows)), staging)


_DUMPED = {
    "group", "member", "prompt", "text", "finished", "token_ids", "logprob", "entropy", "r1", "advantage",
}  # fmt: skip
_HEARD = {"text", "lead", "advantage", "listener", "reader"}


def dump_line(**fields: Any) -> str:
    """The line of one completion in the file of a step.

    Where replies are heard it has `entropies`, of each token, too, and, if it parses, `reply`:
    `Listening.notes`, and the mean advantage of the tokens from the R line on.
    """
    return json.dumps(fields) + "\n"


def read_dump(path: Path) -> list[list[dict[str, Any]]]:
    """The completions of one step by group, members in order (EngineError: a line is no `dump_line`)."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for n, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            groups.setdefault(row["group"], []).append(row)
            missing = _DUMPED - row.keys()
            if "reply" in row:
                missing |= _HEARD - {*row["reply"]}
            if missing:
                raise KeyError(*sorted(missing))
        except (ValueError, TypeError, KeyError) as e:
            raise EngineError(f"{path}:{n}: no completion as verl was told to write it ({e!r})") from e
    return [sorted(g, key=lambda r: r["member"]) for g in groups.values()]


def read_metrics(path: Path) -> dict[int, dict[str, Any]]:
    """verl's metrics by step; leaves out a last line that is still being written."""
    if not path.exists():
        return {}
    found: dict[int, dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(ValueError, KeyError, TypeError):
            record = json.loads(line)
            found.setdefault(int(record["step"]), {}).update(record["data"])
    return found


_MEASURES = {
    "loss": "actor/pg_loss",
    "kl": "actor/kl_loss",
    "clip_fraction": "actor/pg_clipfrac",
    "grad_norm": "actor/grad_norm",
    "lr": "actor/lr",
    "entropy": "actor/entropy",
    "mismatch": "self_grpo/mismatch",
    "mismatch_p99": "self_grpo/mismatch_p99",
    "mismatch_clipped": "self_grpo/mismatch_clipped",
    "seconds": "timing_s/step",
    "tokens_per_second_per_gpu": "perf/throughput",
    "mfu": "perf/mfu/actor",
    "memory_gib": "perf/max_memory_allocated_gb",
}


def measures_of(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The measures of one step under this project's names; tests on held-out prompts as `test`."""
    named = {ours: metrics[theirs] for ours, theirs in _MEASURES.items() if theirs in metrics}
    tests = {k.split("/", 1)[1]: v for k, v in metrics.items() if k.startswith(("val-core/", "val-aux/"))}
    return named | ({"test": tests} if tests else {})
