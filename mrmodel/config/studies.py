"""studies/params.yaml: which runs the studies of studies/dvc.yaml have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import ConfigDict, Field

from mrmodel.config.base import Count, Section, Seed, validate_section
from mrmodel.files import read_yaml
from mrmodel.names import ModelName, PresetName, PretrainingRow

STUDIES_FILE = Path("studies/params.yaml")


class RunLength(Section):
    """Options of each run: DVC writes a mapping as quoted options, and a value as it is."""

    steps: Count


class AblationSettings(Section):
    """Presets, and options of each run."""

    rows: Annotated[list[PresetName], Field(min_length=1)]
    run: RunLength


class CompareSettings(Section):
    """Models, and options of each run."""

    models: Annotated[list[ModelName], Field(min_length=1)]
    run: RunLength


class PretrainingLengths(Section):
    """Options of each run: a row without pre-training takes as many steps as both together."""

    pretrain_steps: Count
    finetune_steps: Count


class PretrainingSettings(Section):
    """What models are pre-trained on, and options of each run."""

    rows: Annotated[list[PretrainingRow], Field(min_length=1)]
    run: PretrainingLengths


class StudySettings(Section):
    """studies/params.yaml; a study of your own may have a section more."""

    model_config = ConfigDict(extra="ignore")

    seeds: Annotated[list[Seed], Field(min_length=1)]
    ablation: AblationSettings
    compare: CompareSettings
    pretraining: PretrainingSettings


def check_studies(root: Path) -> None:
    """Validate studies/params.yaml below `root`, if there is one: DVC pastes it into commands.

    Raises:
        ConfigError: the first mistake found.
        DataError: the file is not UTF-8 text or not YAML.
    """
    path = root / STUDIES_FILE
    if not path.exists():
        return
    validate_section(StudySettings, read_yaml(path), str(STUDIES_FILE))
