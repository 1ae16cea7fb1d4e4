"""Objects <-> state <-> files: exact, checked, without pickle."""

from pipeline.checkpoint.capture import (
    RESERVED,
    capture,
    check_encodable,
    check_names,
    pending_gradients,
    restore,
)
from pipeline.checkpoint.checkpoint import Checkpoint
from pipeline.checkpoint.codec import decode, encode
from pipeline.checkpoint.files import NAMES, read_manifest, read_state, save
from pipeline.checkpoint.manifest import (
    Best,
    FileEntry,
    Manifest,
    Position,
    Report,
    TensorEntry,
    checkpoint_name,
    parse_name,
)
from pipeline.checkpoint.modules import plain
from pipeline.checkpoint.parts import as_seen_by, fingerprint, merged, own_part
from pipeline.checkpoint.random import (
    capture_generators,
    capture_random,
    generators,
    restore_generators,
    restore_random,
    seed_all,
)
from pipeline.checkpoint.schedules import Schedule, Schedules, check_schedule
from pipeline.checkpoint.shards import HeldBack
from pipeline.checkpoint.snapshots import SnapshotParts, Snapshots, Taken, Torn
from pipeline.checkpoint.store import FolderStore, MlflowStore, Store, load, load_newest

__all__ = [
    "NAMES",
    "RESERVED",
    "Best",
    "Checkpoint",
    "FileEntry",
    "FolderStore",
    "HeldBack",
    "Manifest",
    "MlflowStore",
    "Position",
    "Report",
    "Schedule",
    "Schedules",
    "SnapshotParts",
    "Snapshots",
    "Store",
    "Taken",
    "TensorEntry",
    "Torn",
    "as_seen_by",
    "capture",
    "capture_generators",
    "capture_random",
    "check_encodable",
    "check_names",
    "check_schedule",
    "checkpoint_name",
    "decode",
    "encode",
    "fingerprint",
    "generators",
    "load",
    "load_newest",
    "merged",
    "own_part",
    "parse_name",
    "pending_gradients",
    "plain",
    "read_manifest",
    "read_state",
    "restore",
    "restore_generators",
    "restore_random",
    "save",
    "seed_all",
]
