"""Stage ``corpus``: videos, annotations and captions, rendered or ingested from a folder."""

from __future__ import annotations

from mrmodel.config.schema import Config
from mrmodel.progress import Reporter
from mrmodel.stages.paths import Paths
from mrmodel.stages.runner import run_stage


def corpus(config: Config, reporter: Reporter) -> None:
    """Write ``data/<corpus>``.

    The old folder is deleted here, not by DVC (`persist` in dvc.yaml): DVC deletes before anything
    checks the name of the corpus.
    """
    import shutil
    from pathlib import Path

    paths = Paths(config)
    clip_len_s = config.features.clip_len_s
    if config.corpus.source == "folder":
        from mrmodel.data.ingest.folder import import_folder
        from mrmodel.evaluate.run import unscorable_by
        from mrmodel.stages.required_inputs import require_inputs

        require_inputs(config, paths)
        shutil.rmtree(paths.corpus, ignore_errors=True)
        folder = Path(config.corpus.folder)
        ratings = config.corpus.pretrain_ratings
        unscorable = unscorable_by(config.evaluate.protocol)
        import_folder(
            folder,
            clip_len_s,
            paths.corpus,
            reporter,
            paths.imports,
            ratings,
            unscorable,
            every_video=config.corpus.every_video,
        )
    else:
        from mrmodel.synthetic.render import render_corpus

        shutil.rmtree(paths.corpus, ignore_errors=True)
        workers = config.features.workers
        render_corpus(config.corpus, clip_len_s, paths.corpus, workers, reporter)


if __name__ == "__main__":
    run_stage(corpus)
