"""Stage ``package``: fine-tuned weights and post-processing in one folder for serving."""

from __future__ import annotations

import os
import shutil

from mrmodel.config.schema import Config
from mrmodel.files import atomic_path
from mrmodel.predict.serving import write_serving
from mrmodel.progress import Reporter
from mrmodel.stages.paths import Paths
from mrmodel.stages.runner import run_stage_with
from mrmodel.train.checkpoint import CONFIG, WEIGHTS


def package(config: Config, reporter: Reporter, arguments: dict[str, str]) -> None:
    """Write ``models/served/<model>``; ``--model`` names one of ``train.models``."""
    paths, name = Paths(config), arguments["model"]
    source, target = paths.model("finetuned", name), paths.served(name)
    with atomic_path(target / WEIGHTS) as temporary:
        temporary.unlink()
        try:
            os.link(source / WEIGHTS, temporary)
        except OSError:  # another file system, or no support for links
            shutil.copyfile(source / WEIGHTS, temporary)
    with atomic_path(target / CONFIG) as temporary:
        shutil.copyfile(source / CONFIG, temporary)
    write_serving(target, config.postprocess, rendered=config.corpus.source == "sample")


if __name__ == "__main__":
    run_stage_with(package, ("model",))
