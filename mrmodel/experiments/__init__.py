"""Studies on top of the pipeline: seeds, ablation, comparison of models, pre-training."""
