"""`selfemo personas ...` and `selfemo coldstart generate`: the stages that ask experts, on whole data sets.

Each job has a folder with a store. The same command continues a stopped job: it asks only what has no answer.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from selfemo.config import JournalMode
from selfemo.data import load as load_data
from selfemo.data import speakers_recur
from selfemo.errors import DataError, StoreError
from selfemo.files import lock_folder, need_polars
from selfemo.method.prompts import Reasoning
from selfemo.method.types import Conversation
from selfemo.models.embedding import DEFAULT_EMBEDDER, Embedder, check_embedder
from selfemo.models.generation.chat import ExpertSpec
from selfemo.models.generation.endpoint import estimate_tokens
from selfemo.progress import Reporter
from selfemo.runs.inputs import with_known_personas
from selfemo.runs.store import STORE_FILE, Store
from selfemo.runs.words import value_in_words
from selfemo.stages import coldstart, personas
from selfemo.stages.clusters import Clustering, cluster_store
from selfemo.stages.experts import Question, Reply, answer_key, choose, first_request


def conversations_of(
    source: str, splits: Sequence[str], limit: int = 0, lenient: bool = False, folders: Sequence[Path] = ()
) -> list[Conversation]:
    """The first `limit` (0: all) conversations of some splits ("all": every one), with personas."""
    loaded = with_known_personas(load_data(source, lenient=lenient).conversations, folders)
    chosen = [c for c in loaded if "all" in splits or c.split in splits]
    if not chosen:
        found = ", ".join(sorted({c.split for c in loaded}))
        raise DataError(f"no conversation of split {', '.join(splits)}; there are: {found}", source)
    return chosen[:limit] if limit else chosen


@contextmanager
def open_store(folder: Path, journal: JournalMode | None = None) -> Iterator[Store]:
    """The store of a folder, locked against other processes; `journal` as for `Store`."""
    with lock_folder(folder), Store(folder / STORE_FILE, journal=journal) as store:
        yield store


def reporting(advance: Callable[..., None]) -> Callable[[Reply[Any]], None]:
    """A callback that shows progress, with the rate of answers and the failures so far."""
    start, done, failed = time.monotonic(), 0, 0

    def on_reply(reply: Reply[Any]) -> None:
        nonlocal done, failed
        done += 1
        failed += reply.value is None
        rate = done / max(time.monotonic() - start, 1e-3)
        advance(1, f"{rate:.1f}/s, {failed} failed")

    return on_reply


def plan(questions: Iterable[Question[Any]], specs: Sequence[ExpertSpec], folder: Path) -> dict[str, Any]:
    """The questions of a job, the calls without a kept answer, and about how many tokens they take.

    Tokens are the characters of the question over four, and the longest answer; repairs come on top.
    """
    path = folder / STORE_FILE
    counts: Counter[str] = Counter()
    tokens = total = 0
    with Store(path, read_only=True) if path.exists() else nullcontext() as store:
        for question in questions:
            total += 1
            spec = specs[choose(question.item, len(specs))]
            request = first_request(question)
            if store and store.answer(answer_key(spec.model, request, 0)):
                continue
            counts[spec.name] += 1
            tokens += estimate_tokens(request)
    return {
        "questions": total,
        "calls": counts.total(),
        "calls_by_expert": dict(counts),
        "tokens_at_most_about": tokens,
    }


def plan_personas(
    conversations: Sequence[Conversation], specs: Sequence[ExpertSpec], folder: Path, segment_turns: int
) -> dict[str, Any]:
    found = personas.segments(conversations, segment_turns)
    return plan((personas.question(s) for s in found), specs, folder)


def extract_personas(
    conversations: Sequence[Conversation],
    specs: Sequence[ExpertSpec],
    folder: Path,
    reporter: Reporter,
    *,
    segment_turns: int = 16,
    rounds: int = 2,
    retry_failed: bool = False,
    merge: bool = False,
    embedder: str = DEFAULT_EMBEDDER,
) -> dict[str, Any]:
    """Records of all segments, then one profile for each speaker (`merge`: experts write it)."""
    check_embedder(embedder)
    with open_store(folder) as store:
        total = sum(1 for _ in personas.segments(conversations, segment_turns))
        with reporter.bar("segments", total) as advance:
            tally = personas.extract(
                conversations, specs, store, recurring=speakers_recur, segment_turns=segment_turns,
                rounds=rounds, retry_failed=retry_failed, on_reply=reporting(advance),
            )  # fmt: skip
        counts: dict[str, Any] = {**tally.as_dict(), "records": store.persona_count()}
        if counts["records"]:
            counts["profiles"] = _profiles(store, reporter, embedder, specs if merge else ())
        return counts


def _profiles(store: Store, reporter: Reporter, embedder: str, specs: Sequence[ExpertSpec]) -> dict[str, int]:
    records = Counter(p[:3] for p in store.personas())
    several = sum(n > 1 for n in records.values())
    with reporter.bar("profiles", max(1, several)) as advance:
        return personas.build_profiles(store, Embedder(embedder), specs, on_reply=reporting(advance))


def merge_profiles(
    folder: Path, specs: Sequence[ExpertSpec], reporter: Reporter, embedder: str
) -> dict[str, int]:
    """Make the profiles of a folder's records again: by experts, or the most central descriptions."""
    _must_hold_store(folder)
    check_embedder(embedder)
    with open_store(folder) as store:
        if not store.persona_count():
            raise StoreError(f"{folder} holds no persona yet; run `selfemo personas extract` first")
        return _profiles(store, reporter, embedder, specs)


def _must_hold_store(folder: Path) -> None:
    if not (folder / STORE_FILE).exists():
        raise StoreError(f"{folder} is not the folder of a run or of `selfemo personas extract`")


def cluster_personas(
    folder: Path, runs: Sequence[Path], min_size: int, embedder: str, seed: int
) -> tuple[Clustering, list[dict[str, Any]]]:
    """Cluster the personas of a folder; clusters go into its store and those of `runs`.

    Returns: the clustering, and table 3 (mean R1 by cluster and stage) of each store that holds rollouts.
    """
    for place in (folder, *runs):
        _must_hold_store(place)
    check_embedder(embedder)
    with open_store(folder) as store:
        result = cluster_store(store, Embedder(embedder), min_size, seed)
        rewards = [{"run": str(folder), **r} for r in store.reward_by_cluster()]
        rows = store.clusters()
    for run in runs:
        with open_store(run) as store:
            store.set_clusters(rows)
            rewards += [{"run": str(run), **r} for r in store.reward_by_cluster()]
    return result, rewards


def plan_cold_start(
    conversations: Sequence[Conversation],
    specs: Sequence[ExpertSpec],
    out: Path,
    max_samples: int,
    seed: int,
    reasoning: Reasoning,
) -> dict[str, Any]:
    if not specs:
        return {"samples": len(coldstart.gold_samples(conversations, max_samples, seed)), "calls": 0}
    prompts = coldstart.expert_prompts(conversations, max_samples, seed)
    return plan((coldstart.question(p, reasoning) for p in prompts), specs, answers_folder(out))


def generate_cold_start(
    conversations: Sequence[Conversation],
    specs: Sequence[ExpertSpec],
    out: Path,
    reporter: Reporter,
    *,
    max_samples: int = 0,
    seed: int = 0,
    reasoning: Reasoning = "none",
    agreement: float = coldstart.AGREEMENT,
    rounds: int = 2,
    retry_failed: bool = False,
) -> dict[str, Any]:
    """Write cold-start samples as Parquet: by experts (answers in OUT.answers), else from gold data."""
    need_polars()  # before experts are asked for hours
    if not specs:
        gold = coldstart.gold_samples(conversations, max_samples, seed)
        return {"samples": coldstart.write_parquet(out, gold, "none", "gold"), "source": "gold"}
    prompts = coldstart.expert_prompts(conversations, max_samples, seed)
    with open_store(answers_folder(out)) as store, reporter.bar("samples", len(prompts)) as advance:
        samples, tally, dropped = coldstart.expert_samples(
            prompts, specs, store, reasoning=reasoning, agreement=agreement, rounds=rounds,
            retry_failed=retry_failed, on_reply=reporting(advance),
        )  # fmt: skip
    counts = {**tally.as_dict(), "dropped": dict(dropped)}
    if not samples:
        raise DataError(
            f"none of the {len(prompts)} answers can be used ({value_in_words(dropped)}); try a stronger "
            "expert, a lower --agreement or more --rounds",
            out,
        )
    return {"samples": coldstart.write_parquet(out, samples, reasoning, "expert"), **counts}


def answers_folder(out: Path) -> Path:
    return out.with_name(out.name + ".answers")
