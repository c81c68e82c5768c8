import copy
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mrmodel.components import MODEL_SETTINGS, MODELS
from mrmodel.config.schema import RUNS, load_config, parse_config
from mrmodel.errors import ConfigError, DataError

ROOT = Path(__file__).parents[1]


@pytest.fixture
def raw() -> dict:
    return yaml.safe_load((ROOT / "params.yaml").read_text())


def test_the_repository_file_is_valid() -> None:
    config = load_config(ROOT / "params.yaml")
    assert config.train.models


@pytest.mark.parametrize(
    ("path", "value", "rule"),
    [
        ("train.finetune.lr", "fast", "valid number"),
        ("train.finetune.lr", "1e-3", "with quotes it is a text"),
        ("train.finetune.lr", -1.0, "greater than 0"),
        ("train.batch_size", 0, "greater than or equal to 1"),
        ("train.batch_size", 3.5, "valid integer"),
        ("train.precision", "fp8", "'fp32' or 'bf16'"),
        ("corpus.width", 250, "multiple of 16"),
        ("corpus.source", "web", "'sample' or 'folder'"),
        ("train.device", "gpu", "expected auto, cpu, cuda or cuda:N"),
        ("evaluate.protocol", "qvhighlight", "not a known evaluation protocol"),
        ("features.video_streams", ["embedded.vido"], "not a known encoder"),
        ("train.models", ["qd_dtr"], "no section under `models`"),
        ("models.qd_detr.hidden", 0, "models.qd_detr.hidden"),
        ("train.scratch.steps", 1, "must equal pretrain.steps + finetune.steps"),
        ("train.finetune.epochs", 5, "exactly one"),
        ("train.finetune.batch_size", 0, "greater than or equal to 1"),
        ("train.finetune.warmup_from", 1.5, "less than or equal to 1"),
        ("train.finetune.swa", {"from_epoch": 3, "lr": 1e-5}, "anneal_epochs = None: is missing"),
        ("orchestrate.extract_shards.address", "10.0.0.1:8786", "a pool of processes has none"),
    ],
)
def test_a_wrong_value_is_named_with_path_value_and_rule(
    raw: dict, path: str, value: object, rule: str
) -> None:
    _set(raw, path, value)
    with pytest.raises(ConfigError) as error:
        parse_config(raw)
    assert rule in str(error.value)
    assert error.value.path.startswith(path.split(".")[0])


@pytest.mark.parametrize(
    ("path", "near"),
    [
        ("train.finetune.lrate", "lr"),
        ("corpus.heigth", "height"),
        ("trian", "train"),
        ("models.qd_detr.hiden", "hidden"),
    ],
)
def test_an_unknown_key_names_the_nearest(raw: dict, path: str, near: str) -> None:
    _set(raw, path, 1)
    with pytest.raises(ConfigError) as error:
        parse_config(raw)
    assert error.value.path == path
    assert near in error.value.nearest


def test_a_missing_key_is_named(raw: dict) -> None:
    del raw["train"]["finetune"]["lr"]
    with pytest.raises(ConfigError, match=r"train\.finetune\.lr.*missing"):
        parse_config(raw)


def test_keys_of_a_run_that_came_later_may_be_absent(raw: dict) -> None:
    whole = parse_config(raw)
    for run in ("pretrain", "finetune", "scratch"):
        for key in ("warmup_from", "swa", "batch_size", "weight_decay", "loss", "targets"):
            assert raw["train"][run].pop(key) is None
    assert parse_config(raw) == whole
    assert whole.model_dump(mode="json")["train"] == raw["train"]


def test_clips_off_the_grid_of_intervid_mr_need_streams_that_it_cannot_use(raw: dict) -> None:
    raw["features"] |= {"clip_len_s": 1 / 6, "imports": "own_features/charades"}
    with pytest.raises(ConfigError, match=r"give a multiple of 0\.1 s"):
        parse_config(raw)
    raw["features"] |= {"video_streams": ["vgg.video4096"], "text_streams": ["glove.text300"]}
    assert parse_config(raw).features.clip_len_s == 1 / 6


def test_a_run_may_have_loss_weights_of_its_own(raw: dict) -> None:
    raw["models"]["video_lights"]["loss"] = {"saliency": 4.0, "contrastive": 0.3}
    raw["train"] |= {"models": ["video_lights"]}
    raw["train"]["pretrain"]["loss"] = {"contrastive": 0.01}
    config = parse_config(raw)
    found = {run: config.model_settings("video_lights", run)["loss"] for run in RUNS}
    common = raw["models"]["video_lights"]["loss"]
    own = {"saliency": 4.0, "contrastive": 0.01}
    assert found == {"pretrain": own, "finetune": common, "scratch": common}
    raw["train"]["pretrain"]["loss"] = {"contrast": 0.01}
    with pytest.raises(ConfigError, match=r"train\.pretrain, models\.video_lights\.loss\.contrast"):
        parse_config(raw)


def test_a_run_may_have_a_batch_size_and_weight_decay_of_its_own(raw: dict) -> None:
    raw["train"]["pretrain"] |= {"batch_size": 256, "weight_decay": 0.0}
    raw["train"]["finetune"] |= {"batch_size": 4}
    train = parse_config(raw).train
    found = {
        run: (train.for_run(run).batch_size, train.for_run(run).weight_decay)
        for run in ("pretrain", "finetune", "scratch")
    }
    common = train.batch_size, train.weight_decay
    assert found == {"pretrain": (256, 0.0), "finetune": (4, common[1]), "scratch": common}


def test_an_unknown_model_names_the_nearest(raw: dict) -> None:
    raw["models"]["qd_dter"] = {}
    with pytest.raises(ConfigError, match=r"models\.qd_dter.*did you mean 'qd_detr'"):
        parse_config(raw)


def test_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="preset apply sample"):
        load_config(tmp_path / "params.yaml")


def test_broken_yaml_is_reported_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("seed: [1\n")
    with pytest.raises(DataError, match=r"params.yaml:2: not valid YAML"):
        load_config(tmp_path / "params.yaml")


def test_other_bytes_than_utf8_are_named_with_their_line(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_bytes((ROOT / "params.yaml").read_bytes() + b"# caf\xe9\n")
    line = file.read_bytes().count(b"\n")
    with pytest.raises(DataError, match=f"p.yaml:{line}: not UTF-8 text: byte 0xe9 at column 6"):
        load_config(file)


def test_settings_cannot_be_changed_after_loading(raw: dict) -> None:
    config = parse_config(copy.deepcopy(raw))
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 3  # type: ignore[misc]


def _set(raw: dict, path: str, value: object) -> None:
    *parents, last = path.split(".")
    for part in parents:
        raw = raw[part]
    raw[last] = value


def test_learned_token_positions_must_reach_as_far_as_the_tokens(raw: dict) -> None:
    raw["models"]["qd_detr"] |= {"text_positions": True, "max_tokens": 20}
    with pytest.raises(ConfigError) as error:
        parse_config(raw)
    assert error.value.path == "models.qd_detr.max_tokens"
    assert "features.max_tokens" in str(error.value)
    raw["features"]["max_tokens"] = 20
    assert parse_config(raw).features.max_tokens == 20


def test_a_rule_between_keys_does_not_repeat_the_section(raw: dict) -> None:
    raw["models"]["qd_detr"] |= {"hidden": 64, "heads": 7}
    with pytest.raises(ConfigError) as error:
        parse_config(raw)
    assert str(error.value) == "models.qd_detr: hidden 64 is not a multiple of heads 7"


def test_the_settings_of_each_model_are_found_without_it() -> None:
    listed = {name: MODEL_SETTINGS.get(name) for name in MODEL_SETTINGS}
    assert listed == {name: MODELS.get(name).Settings for name in MODELS}
    code = (
        "import sys; from pathlib import Path; import mrmodel.stages.extract\n"
        "from mrmodel.config.schema import load_config\n"
        "load_config(Path('params.yaml'))\n"
        "assert 'torch' not in sys.modules, 'it takes each stage two seconds'"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
