"""The champion as a `Predictor` of this process, with this code and not the version's own."""

from __future__ import annotations

import tempfile
from pathlib import Path

from mrmodel.errors import CheckpointError, FeatureError, RegistryError
from mrmodel.predict.predictor import Predictor
from mrmodel.registry.decision import pointer_key, read_pointer
from mrmodel.registry.mlflow_versions import Versions
from mrmodel.registry.pointer_store import registry_store
from mrmodel.tracking.experiment import open_for_user
from mrmodel.version import __version__

# As MLflow calls the one that every server has.
_EXPERIMENT = "Default"


def load_champion(name: str, device: str = "auto", *, state: str | Path = ".mrmodel") -> Predictor:
    """Load the champion of a registered model.

    Which version that is, ``champion.json`` says, in the store of ``MRMODEL_REGISTRY``; its files
    come from the MLflow of ``MLFLOW_TRACKING_URI`` and are verified. None of its code runs.

    Args:
        name: `promotion.registered_model` of the project that promoted it.
        device: auto, cpu, cuda or cuda:N.
        state: folder of the registry where the variables are not set.

    Raises:
        RegistryError: there is no champion; MLflow does not answer; a file was changed; or this
            code cannot read the version.
        ConfigError: a variable is wrong, or there is no such device.
        StorageError: the store does not answer.
    """
    return load_version(name, champion_version(name, state=state), device, state=state)


def champion_version(name: str, *, state: str | Path = ".mrmodel") -> int:
    """The version of a registered model that is its champion now.

    Raises:
        RegistryError, ConfigError, StorageError: see `load_champion`.
    """
    store = registry_store(Path(state))
    key = pointer_key(name)
    found = store.get(key)
    if found is None:
        rule = "there is no champion; `mrmodel registry promote` makes one"
        raise RegistryError(f"{store.url}/{key}: {rule}")
    return read_pointer(found.content, f"{store.url}/{key}").version


def load_version(
    name: str, version: int, device: str = "auto", *, state: str | Path = ".mrmodel"
) -> Predictor:
    """Load a version of a registered model; see `load_champion`.

    Raises:
        RegistryError, ConfigError: see there.
    """
    client, experiment = open_for_user(_EXPERIMENT, Path(state))
    with tempfile.TemporaryDirectory(prefix="mrmodel-champion-") as folder:
        files = Versions(client, experiment, name).files(version, Path(folder))
        try:
            return Predictor.load(files.folder, device)
        except (CheckpointError, FeatureError) as error:
            reason = str(error).replace(f"{files.folder}/", "")
            made_with = files.record.environment.get("mrmodel", "an unknown version")
            raise RegistryError(
                f"{name} version {version}: registered with mrmodel {made_with}, cannot be read by "
                f"this one ({__version__}): {reason}; train and promote a model with this version, "
                "or let MLflow serve it with its own code (docs/howto/promote.md)"
            ) from error
