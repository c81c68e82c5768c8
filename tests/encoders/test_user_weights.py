"""A weight set: converted, locked, changed, damaged, missing."""

import json
import pickle
import shutil

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from mrmodel.cli.weights import group
from mrmodel.convert.encoders.convert import RECIPES, Conversion, convert, read_tensors
from mrmodel.convert.encoders.torchscript import read_torchscript
from mrmodel.encoders.base import build_encoder
from mrmodel.encoders.torch_base import DEVICE_VARIABLE
from mrmodel.encoders.user_weights import PUBLISHED, WEIGHTS_VARIABLE, WeightSet, weights_root
from mrmodel.errors import CheckpointError, ConfigError, UnknownNameError, WeightsError
from mrmodel.files import sha256_of

from .tiny_sets import make_clip

CLIPS = np.full((1, 1, 32, 32, 3), 99, np.uint8)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Published files and the set made of them; not to be changed."""
    folder = tmp_path_factory.mktemp("made")
    make_clip(folder / "weights", folder)
    return folder


@pytest.fixture
def folder(made, tmp_path, monkeypatch):
    """A weights folder of one's own, which the encoders find."""
    shutil.copytree(made / "weights", tmp_path / "weights")
    monkeypatch.setenv(WEIGHTS_VARIABLE, str(tmp_path / "weights"))
    return tmp_path / "weights" / "clip_b32"


def encode():
    return build_encoder("clip_b32.video512").encode_clips(CLIPS)


def run(*arguments):
    result = CliRunner().invoke(group, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_the_command_makes_the_same_set(made, folder):
    expected = {path.name: path.read_bytes() for path in folder.iterdir()}
    shutil.rmtree(folder)
    files = "--weights", made / "clip.safetensors", "--vocabulary", made / "merges.txt.gz"
    output = run("convert", "clip_b32", *files).output
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == expected
    assert sha256_of(folder / "model.safetensors") in output
    lock = json.loads(expected["weights.lock"])
    assert lock["sources"][0] == {
        "file": "clip.safetensors",
        "sha256": sha256_of(made / "clip.safetensors"),
    }
    with pytest.raises(WeightsError, match="--force"):
        run("convert", "clip_b32", *files)
    run("convert", "clip_b32", *files, "--force", "--option", "compute_dtype=bfloat16")
    assert json.loads((folder / "config.json").read_text())["compute_dtype"] == "bfloat16"
    assert np.abs(encode()).max() > 0


def test_options_are_checked(made, tmp_path):
    files = made / "clip.safetensors", made / "merges.txt.gz"
    for text in ("gelu=exact", "compute_dtype=int8", "compute_dtype", "compute_dtype=[1"):
        with pytest.raises(WeightsError, match="option"):
            run("convert", "clip_b32", "--weights", files[0], "--vocabulary", files[1],
                "--force", "--option", text)  # fmt: skip
    changed = Conversion("clip_b32", *files, options={"projection": 64}, root=tmp_path)
    with pytest.raises(WeightsError, match="projection"):
        convert(changed)
    assert not list(tmp_path.iterdir())


def test_missing_weights_say_what_to_bring_and_where(tmp_path, monkeypatch):
    monkeypatch.setenv(WEIGHTS_VARIABLE, str(tmp_path))
    with pytest.raises(WeightsError) as caught:
        encode()
    for part in ("mrmodel weights convert clip_b32", "ViT-B-32.pt", str(tmp_path), "MRMODEL_"):
        assert part in str(caught.value)
    with pytest.raises(WeightsError, match="ViT-B-32"):
        build_encoder("clip_b32.text512").fingerprint()


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "weights.lock"])
def test_a_set_without_a_file_is_refused(folder, file):
    (folder / file).unlink()
    with pytest.raises(WeightsError, match=rf"{file} is missing.*convert clip_b32"):
        encode()
    assert run("verify", "clip_b32").exit_code == 2


@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
def test_a_changed_file_is_refused_until_it_is_locked(folder, file):
    before = encode()
    assert run("verify").exit_code == 0
    path = folder / file
    if file == "config.json":
        values = json.loads(path.read_text()) | {"compute_dtype": "bfloat16"}
        path.write_text(json.dumps(values))
    else:
        tensors = load_file(path)
        save_file({name: tensor * 1.01 for name, tensor in tensors.items()}, path)
    with pytest.raises(WeightsError, match=rf"{file} has SHA-256 .*weights lock clip_b32"):
        encode()
    result = run("verify")
    assert result.exit_code == 2
    assert "minilm.weights: sound" in result.output
    run("lock", "clip_b32")
    assert run("verify", "clip_b32").exit_code == 0
    assert np.abs(encode() - before).max() > 0
    assert json.loads((folder / "weights.lock").read_text())["sources"]


def test_the_fingerprint_follows_the_weights_and_the_choices(folder):
    first = build_encoder("clip_b32.video512").fingerprint()
    values = json.loads((folder / "config.json").read_text()) | {"compute_dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(values))
    run("lock", "clip_b32")
    second = build_encoder("clip_b32.video512").fingerprint()
    assert first["weights"] == second["weights"]
    assert first != second
    tensors = load_file(folder / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, folder / "model.safetensors")
    run("lock", "clip_b32")
    assert build_encoder("clip_b32.video512").fingerprint()["weights"] != first["weights"]


def test_lock_refuses_what_does_not_fit(folder):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    name = "visual_projection.weight"
    for changed, message in (
        ({name: tensors[name][:5]}, rf"{name} is \(5, 64\), expected \(512, 64\)"),
        ({"visual_projection.bias": torch.zeros(3)}, "bias has no place"),
    ):
        save_file(tensors | changed, path)
        with pytest.raises(WeightsError, match=message):
            run("lock", "clip_b32")
    save_file({key: tensor for key, tensor in tensors.items() if key != name}, path)
    with pytest.raises(WeightsError, match=f"{name} is missing"):
        run("lock", "clip_b32")
    for text, message in (('{"patch": 0}', "patch = 0"), ("{", "config.json"), ("{}", "fit|shape")):
        (folder / "config.json").write_text(text)
        with pytest.raises(WeightsError, match=message if message != "fit|shape" else "missing"):
            run("lock", "clip_b32")


def test_a_damaged_lock_or_tokenizer_is_refused(folder):
    whole = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text("{}")
    WeightSet("clip_b32").write_lock([])
    with pytest.raises(WeightsError, match=r"tokenizer\.json: no tokenizer"):
        build_encoder("clip_b32.text512").encode_texts(["a dog"])
    (folder / "tokenizer.json").write_text(whole)
    run("lock", "clip_b32")
    (folder / "weights.lock").write_text('{"set": 3}')
    with pytest.raises(WeightsError, match=r"weights\.lock: set = 3"):
        encode()


def test_the_vocabulary_of_other_weights_is_refused(made, tmp_path):
    path = tmp_path / "merges.txt"
    path.write_text("a comment\nd o\n")
    with pytest.raises(WeightsError, match=r"merges.txt: holds 515 words, .* 520"):
        convert(Conversion("clip_b32", made / "clip.safetensors", path, root=tmp_path))
    with pytest.raises(WeightsError, match="reads no sentences"):
        convert(Conversion("slowfast", made / "clip.safetensors", path, root=tmp_path))


def test_every_set_has_a_recipe():
    assert set(RECIPES) == set(PUBLISHED)


def test_unknown_sets_are_refused(tmp_path):
    with pytest.raises(UnknownNameError, match="clip_b32"):
        run("verify", "clip_b23")
    with pytest.raises(UnknownNameError, match="clip_b32"):
        convert(Conversion("clip", tmp_path / "a.pt"))
    with pytest.raises(WeightsError, match="--vocabulary"):
        convert(Conversion("clip_b32", tmp_path / "a.pt", root=tmp_path))


def test_where_the_weights_folder_is(monkeypatch, tmp_path):
    monkeypatch.delenv(WEIGHTS_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert weights_root() == tmp_path / "mrmodel" / "weights"
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert weights_root() == tmp_path / ".local/share/mrmodel/weights"
    assert WeightSet("clip_b32").folder == weights_root() / "clip_b32"
    assert all(published.licence for published in PUBLISHED.values())


class Payload:
    def __reduce__(self):
        return (print, ("code of the file ran",))


@pytest.mark.parametrize("name", ["a.pt", "b.safetensors"])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_files_that_are_no_weights_are_refused(tmp_path, name, capsys):
    path = tmp_path / name
    with pytest.raises(CheckpointError, match="no such file"):
        read_tensors(path)
    for content in (b"", b"hello", pickle.dumps(Payload())):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=str(path)):
            read_tensors(path)
    assert capsys.readouterr().out == ""


def test_a_torchscript_archive_runs_no_code(tmp_path, capsys):
    import zipfile

    path = tmp_path / "model.pt"
    for content in (pickle.dumps(Payload(), protocol=2), b"\x80\x02}q\x00."[:4]):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("m/data.pkl", content)
            archive.writestr("m/code/__torch__.py", "")
        with pytest.raises(CheckpointError, match=r"model\.pt"):
            read_torchscript(path)
    assert capsys.readouterr().out == ""


def test_wrapped_state_dicts_are_unwrapped(tmp_path):
    tensors = {"a.weight": torch.ones(2, 3)}
    for wrapper in (None, "module", "model", "state_dict"):
        torch.save(tensors if wrapper is None else {wrapper: tensors, "step": 3}, tmp_path / "a.pt")
        assert read_tensors(tmp_path / "a.pt").keys() == tensors.keys()
    torch.save({"step": 3}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="holds no tensor"):
        read_tensors(tmp_path / "a.pt")


def test_sizes_that_do_not_fit_each_other_are_refused(folder, made, tmp_path):
    config = json.loads((folder / "config.json").read_text())
    vision = config["vision"] | {"heads": 3}
    for change, message in (
        ({"image_size": 33}, "33 is no multiple of the patch of 8 pixels"),
        ({"vision": vision}, "vision: .*3 heads cannot share 64 channels"),
    ):
        (folder / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(WeightsError, match=message):
            run("lock", "clip_b32")
    options = {"image_size": 33}
    files = made / "clip.safetensors", made / "merges.txt.gz"
    with pytest.raises(WeightsError, match="33 is no multiple"):
        convert(Conversion("clip_b32", *files, options=options, root=tmp_path / "other"))


def test_weights_that_are_no_numbers_are_refused(made, tmp_path):
    tensors = load_file(made / "clip.safetensors")
    tensors["visual_projection.weight"][0, 0] = float("nan")
    save_file(tensors, tmp_path / "a.safetensors")
    conversion = Conversion(
        "clip_b32", tmp_path / "a.safetensors", made / "merges.txt.gz", root=tmp_path
    )
    with pytest.raises(WeightsError, match=r"visual_projection\.weight holds NaN"):
        convert(conversion)
    assert not (tmp_path / "clip_b32").exists()


@pytest.mark.parametrize("device", ["gpu", "cuda", "cpu:x"])
def test_a_device_that_is_not_there_is_refused(folder, monkeypatch, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv(DEVICE_VARIABLE, device)
    with pytest.raises(ConfigError, match=f"MRMODEL_ENCODER_DEVICE = '{device}'"):
        encode()
    monkeypatch.setenv(DEVICE_VARIABLE, "cpu")
    assert np.isfinite(encode()).all()


def test_a_damaged_file_of_an_index_is_refused(tmp_path):
    (tmp_path / "one.safetensors").write_bytes(b"damaged")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "one.safetensors"}}))
    with pytest.raises(CheckpointError, match=r"one\.safetensors"):
        read_tensors(index)
