"""Every layout of a feature archive, on a miniature; a new one needs a builder in `ARCHIVES`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mrmodel.components import LAYOUTS
from mrmodel.data.feature_check import verify_store
from mrmodel.features.importers.importer import FeatureImportRequest, StreamReport, import_archive
from mrmodel.features.keys import text_key
from mrmodel.features.store import FeatureStore
from mrmodel.files import sha256_of
from tests.features.archives import ARCHIVES, QUERIES, ROWS, Expected

pytestmark = pytest.mark.parametrize("name", list(LAYOUTS))


@pytest.fixture
def archive(name: str, tmp_path: Path) -> tuple[Path, Expected]:
    assert name in ARCHIVES, f"{name} needs a miniature in tests/features/archives.py"
    root = tmp_path / "archive"
    root.mkdir()
    return root, ARCHIVES[name](root)


def bring(name: str, root: Path, output: Path) -> list[StreamReport]:
    vectors = root / "glove.6B.300d.txt"
    return import_archive(
        FeatureImportRequest(
            layout=name,
            source=root,
            output=output,
            clip_len_s=LAYOUTS.get(name).clip_len_s or 2.0,
            word_vectors=vectors if vectors.exists() else None,
        ),
        ROWS,
    )


def test_rows_come_as_they_are(name: str, archive: tuple[Path, Expected], tmp_path: Path) -> None:
    root, expected = archive
    reports = {report.stream: report for report in bring(name, root, tmp_path / "out")}
    assert reports.keys() == expected.keys()
    for stream, items in expected.items():
        store = FeatureStore(tmp_path / "out" / stream)
        video = store.info.modality == "video"
        assert len(store) == len(items) == reports[stream].n_items
        assert store.info.clip_len_s == ((LAYOUTS.get(name).clip_len_s or 2.0) if video else None)
        for key, rows in items.items():
            block, mask = store.gather([key if video else text_key(QUERIES[key])])
            assert mask.all()
            np.testing.assert_array_equal(block[0], rows.astype(np.float16))
        assert verify_store(store.folder) == []


def test_the_same_bytes_again(name: str, archive: tuple[Path, Expected], tmp_path: Path) -> None:
    root, expected = archive
    for output in ("one", "two", "two"):
        bring(name, root, tmp_path / output)
    for stream in expected:
        one, two = tmp_path / "one" / stream, tmp_path / "two" / stream
        files = sorted(path.name for path in one.iterdir())
        assert files == sorted(path.name for path in two.iterdir())
        assert [sha256_of(one / file) for file in files] == [
            sha256_of(two / file) for file in files
        ]
