"""The tables of a run's store."""

SCHEMA_VERSION = 3

REPLIES = """
CREATE TABLE IF NOT EXISTS replies (
    id INTEGER PRIMARY KEY, stage TEXT NOT NULL, step INTEGER NOT NULL, iteration INTEGER NOT NULL,
    prompt TEXT NOT NULL REFERENCES prompts(id), member INTEGER NOT NULL, self_emotion TEXT,
    text TEXT NOT NULL, tokens INTEGER NOT NULL, fault TEXT NOT NULL, r3 REAL, heard TEXT, judged REAL,
    advantage REAL NOT NULL
)
"""
"""The replies that R3 compares: their declared S, and what the listener finds in them."""

SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS stages (
    name TEXT PRIMARY KEY, status TEXT NOT NULL, step INTEGER NOT NULL DEFAULT 0,
    checkpoint TEXT, info TEXT NOT NULL DEFAULT '{}', seconds REAL NOT NULL DEFAULT 0
);
CREATE TABLE IF NOT EXISTS prompts (
    id TEXT PRIMARY KEY, stage TEXT NOT NULL, step INTEGER NOT NULL, iteration INTEGER NOT NULL,
    episode TEXT NOT NULL, turn INTEGER NOT NULL, parent TEXT, dataset TEXT NOT NULL,
    conversation TEXT NOT NULL, label_set TEXT NOT NULL, answerer TEXT NOT NULL,
    persona TEXT NOT NULL, scenario TEXT NOT NULL, history TEXT NOT NULL, target TEXT,
    skipped INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE IF NOT EXISTS rollouts (
    id INTEGER PRIMARY KEY, stage TEXT NOT NULL, step INTEGER NOT NULL, iteration INTEGER NOT NULL,
    prompt TEXT NOT NULL REFERENCES prompts(id), member INTEGER NOT NULL, text TEXT NOT NULL,
    tokens INTEGER NOT NULL, failure TEXT, emotion TEXT, self_emotion TEXT, reply TEXT,
    r1 REAL NOT NULL, r2 REAL NOT NULL, advantage REAL NOT NULL, mean_logprob REAL NOT NULL,
    entropy REAL NOT NULL, best INTEGER NOT NULL, gate TEXT
);
CREATE INDEX IF NOT EXISTS rollouts_by_prompt ON rollouts (prompt);
CREATE INDEX IF NOT EXISTS rollouts_by_stage ON rollouts (stage, step);
CREATE TABLE IF NOT EXISTS samples (
    id INTEGER PRIMARY KEY, stage TEXT NOT NULL, step INTEGER NOT NULL, iteration INTEGER NOT NULL,
    source TEXT NOT NULL, prompt TEXT NOT NULL REFERENCES prompts(id), completion TEXT NOT NULL,
    emotion TEXT NOT NULL, reward REAL NOT NULL, fingerprint TEXT NOT NULL UNIQUE,
    used INTEGER NOT NULL DEFAULT 1
);
CREATE TABLE IF NOT EXISTS predictions (
    evaluation TEXT NOT NULL, prompt TEXT NOT NULL, dataset TEXT NOT NULL,
    conversation TEXT NOT NULL, gold TEXT NOT NULL, predicted TEXT, failure TEXT, r1 REAL NOT NULL,
    text TEXT NOT NULL, believed TEXT, PRIMARY KEY (evaluation, prompt)
);
CREATE TABLE IF NOT EXISTS metrics (
    id INTEGER PRIMARY KEY, stage TEXT NOT NULL, step INTEGER NOT NULL, record TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS answers (
    key TEXT PRIMARY KEY, purpose TEXT NOT NULL, item TEXT NOT NULL, expert TEXT NOT NULL,
    model TEXT NOT NULL, text TEXT NOT NULL, prompt_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL
);
-- One record a segment and speaker; the tokens are those of the segment's whole exchange.
CREATE TABLE IF NOT EXISTS personas (
    segment TEXT NOT NULL, speaker TEXT NOT NULL, scope TEXT NOT NULL, dataset TEXT NOT NULL,
    conversation TEXT NOT NULL, split TEXT NOT NULL, turns INTEGER NOT NULL,
    description TEXT NOT NULL, scenario TEXT NOT NULL, expert TEXT NOT NULL, model TEXT NOT NULL,
    prompt_version INTEGER NOT NULL, prompt_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL, PRIMARY KEY (segment, speaker)
);
CREATE TABLE IF NOT EXISTS failures (
    purpose TEXT NOT NULL, item TEXT NOT NULL, expert TEXT NOT NULL, kind TEXT NOT NULL,
    detail TEXT NOT NULL, rounds INTEGER NOT NULL, PRIMARY KEY (purpose, item)
);
-- scope: the conversation that a speaker belongs to, "" for one who recurs over the whole data set.
CREATE TABLE IF NOT EXISTS profiles (
    dataset TEXT NOT NULL, scope TEXT NOT NULL, speaker TEXT NOT NULL, description TEXT NOT NULL,
    made_by TEXT NOT NULL, segments INTEGER NOT NULL, PRIMARY KEY (dataset, scope, speaker)
);
CREATE TABLE IF NOT EXISTS persona_clusters (
    description TEXT PRIMARY KEY, cluster INTEGER NOT NULL, name TEXT NOT NULL,
    x REAL NOT NULL, y REAL NOT NULL
);
"""
SCHEMA += f"{REPLIES};\nCREATE INDEX IF NOT EXISTS replies_by_stage ON replies (stage, step);\n"

UPGRADES = {1: "ALTER TABLE predictions ADD COLUMN believed TEXT", 2: REPLIES}
"""From each older version, the statement that leads to the next one. A store that is opened to be written is
brought up to date; one that is only read stays as it is, so its readers know what may be missing."""
