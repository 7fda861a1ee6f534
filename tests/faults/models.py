"""Reading the arrays of a run's checkpoints."""

import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from resflax.train import build, default_config


def checkpoint_template(workdir: Path) -> dict[str, Any]:
    """Returns the template to restore the checkpoints of a run on one device."""
    config = default_config()
    saved = json.loads((workdir / "config.json").read_text())
    with config.unlocked():
        config.update(ConfigDict(saved))
    config.parallel, config.mesh.fsdp = "pmap", 1
    initial = build(config).init()
    return {"state": initial, "eval_batch_stats": initial.batch_stats}
