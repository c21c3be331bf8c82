"""What a run may leave in W&B beside its rows: its final weights, and the report of its experiment."""

from __future__ import annotations

import re
from pathlib import Path

import attrs
import wandb

from altgrad_core.training.events import Event


def log_weights(run: wandb.Run, run_folder: Path) -> None:
    """Log the weights of the newest checkpoint, as ``altgrad checkpoints RUN --weights`` writes them.

    Raises ``AltgradError`` when there is no checkpoint or it is damaged.
    """
    from altgrad_core.analysis.checkpoints import export_weights

    file = _folder(run) / "model.safetensors"
    saved = export_weights(run_folder, file)
    _log(run, file, name=f"{run.group}-{run.name}-weights", type="model", metadata=attrs.asdict(saved))


def log_report(run: wandb.Run, run_folder: Path, ended: Event) -> None:
    """Log the page that ``altgrad report`` would write now; its newest version is that of the run that ended last.

    Raises ``AltgradError`` when the folder of a run of the experiment is damaged.
    """
    from altgrad_core.analysis.report import REPORT, render
    from altgrad_core.analysis.runs import load_experiment_runs
    from altgrad_core.analysis.tracking import as_ended

    runs = load_experiment_runs(run_folder.parent)
    file = _folder(run) / REPORT
    file.write_text(render([as_ended(r, ended) if r.folder == run_folder else r for r in runs]), encoding="utf-8")
    _log(run, file, name=f"{run.group}-report", type="report", metadata={"runs": [r.name for r in runs]})


def _folder(run: wandb.Run) -> Path:
    """Return where files lie until they are uploaded: beside the rows, so that ``wandb sync`` finds them."""
    folder = Path(run.sync_dir) / "artifacts"
    folder.mkdir(exist_ok=True)
    return folder


def _log(run: wandb.Run, file: Path, *, name: str, type: str, metadata: dict[str, object]) -> None:
    artifact = wandb.Artifact(re.sub(r"[^\w.-]", "-", name)[-128:], type=type, metadata=metadata)
    artifact.add_file(str(file), policy="immutable", skip_cache=True)  # no copies elsewhere on the disk
    run.log_artifact(artifact)
