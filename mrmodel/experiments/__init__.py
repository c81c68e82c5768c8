"""Studies over the main job: seeds, ablation, comparison of models."""
