"""Settings of a run: `load()` reads them from TOML files; `Config` holds them, a model a section."""

from selfemo.config.cluster import ClusterConfig
from selfemo.config.guards import GuardAction, GuardConfig
from selfemo.config.kept import JournalMode, SaveConfig, StoreConfig
from selfemo.config.loading import differing, load, shipped, to_toml
from selfemo.config.rewards import REFERENCE, RewardConfig
from selfemo.config.sections import (
    AdamConfig,
    Config,
    DataConfig,
    EvalConfig,
    FitConfig,
    FlywheelConfig,
    GateConfig,
    GrpoConfig,
    LoraConfig,
    ModelConfig,
    OptimConfig,
    PromptConfig,
    SamplingConfig,
    SelfPlayConfig,
    SftConfig,
)
from selfemo.config.tables import TableConfig, load_table

__all__ = [
    "REFERENCE",
    "AdamConfig",
    "ClusterConfig",
    "Config",
    "DataConfig",
    "EvalConfig",
    "FitConfig",
    "FlywheelConfig",
    "GateConfig",
    "GrpoConfig",
    "GuardAction",
    "GuardConfig",
    "JournalMode",
    "LoraConfig",
    "ModelConfig",
    "OptimConfig",
    "PromptConfig",
    "RewardConfig",
    "SamplingConfig",
    "SaveConfig",
    "SelfPlayConfig",
    "SftConfig",
    "StoreConfig",
    "TableConfig",
    "differing",
    "load",
    "load_table",
    "shipped",
    "to_toml",
]
