"""Stage ``corpus``: videos, annotations and captions, rendered or brought in from a folder."""

from __future__ import annotations

from mrmodel.config import Config
from mrmodel.pipeline.layout import Layout
from mrmodel.pipeline.stage import run_stage
from mrmodel.progress import Reporter


def corpus(config: Config, reporter: Reporter) -> None:
    """Make ``data/<corpus>``."""
    from pathlib import Path

    layout = Layout(config)
    clip_len_s = config.features.clip_len_s
    if config.corpus.source == "folder":
        from mrmodel.corpus.folder import import_folder
        from mrmodel.pipeline.inputs import require_inputs

        require_inputs(config, layout)
        folder = Path(config.corpus.folder)
        import_folder(folder, clip_len_s, layout.corpus, reporter, layout.imports)
    else:
        from mrmodel.corpus.render import render_corpus

        workers = config.features.workers
        render_corpus(config.corpus, clip_len_s, layout.corpus, workers, reporter)


if __name__ == "__main__":
    run_stage(corpus)
