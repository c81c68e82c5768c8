"""Stage ``package``: fine-tuned weights and post-processing in one folder for serving."""

from __future__ import annotations

import shutil

from mrmodel.config.schema import Config
from mrmodel.files import atomic_path, link_or_copy, replaced_folder
from mrmodel.predict.serving import SERVING, write_serving
from mrmodel.progress import Reporter
from mrmodel.stages.paths import Paths
from mrmodel.stages.runner import run_stage_with
from mrmodel.train.checkpoint import CONFIG, WEIGHTS


def package(config: Config, reporter: Reporter, arguments: dict[str, str]) -> None:
    """Write ``models/served/<model>``; ``--model`` names one of ``train.models``.

    The model that is served now stays until the new one is complete: DVC does not delete it
    (`persist` in dvc.yaml).
    """
    paths, name = Paths(config), arguments["model"]
    source = paths.model("finetuned", name)
    with replaced_folder(paths.served(name), WEIGHTS, CONFIG, SERVING, ".*.tmp") as folder:
        with atomic_path(folder / WEIGHTS) as temporary:
            temporary.unlink()
            link_or_copy((source / WEIGHTS).resolve(), temporary)
        with atomic_path(folder / CONFIG) as temporary:
            shutil.copyfile(source / CONFIG, temporary)
        write_serving(folder, config.postprocess, rendered=config.corpus.source == "sample")


if __name__ == "__main__":
    run_stage_with(package, ("model",))
