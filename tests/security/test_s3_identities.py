"""Findings 6 and 11: an S3 key opens its own part of the store, and without one nothing does."""

from __future__ import annotations

import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError

from infra.local.seaweedfs import BUCKET, INCOMING, INNER_PORTS, REGISTRY, SENDER, WORKER
from mrmodel.retrain.deliveries import list_deliveries
from mrmodel.storage import open_store
from tests.services import S3Service

PLACES = [f"{BUCKET}/{folder}/a" for folder in ("dvc", "handover", "registry", "mlflow")]
OWN = f"{INCOMING}/next/a"


def client_of(s3: S3Service, identity: str) -> Any:
    user = s3.server.environment(identity)
    return boto3.client(
        "s3",
        endpoint_url=user["MRMODEL_S3_ENDPOINT"],
        aws_access_key_id=user["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=user["AWS_SECRET_ACCESS_KEY"],
        region_name=user["AWS_DEFAULT_REGION"],
    )


def at(place: str) -> dict[str, str]:
    bucket, _, key = place.partition("/")
    return {"Bucket": bucket, "Key": key}


@pytest.fixture
def filled(s3: S3Service) -> Any:
    """The registry's client; an object is in every place."""
    registry = client_of(s3, REGISTRY)
    for place in (*PLACES, OWN):
        registry.put_object(**at(place), Body=b"as it was")
    return registry


def refused(call: Callable[..., Any], **request: Any) -> bool:
    """Whether a call is denied; other errors are no answer."""
    try:
        call(**request)
    except ClientError as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] == 403:
            return True
        raise
    return False


def test_a_senders_key_delivers(s3: S3Service, filled: Any, tmp_path: Path) -> None:
    """Also in parts, as programs send large files; the retraining reads it with the other key."""
    sender = client_of(s3, SENDER)
    sender.put_object(**at(f"{INCOMING}/week-1/train.jsonl"), Body=b"{}")
    large = tmp_path / "a.mp4"
    large.write_bytes(bytes(9 << 20))
    sender.upload_file(str(large), INCOMING, "week-1/videos/a.mp4")
    begun = sender.create_multipart_upload(**at(OWN))
    sender.abort_multipart_upload(**at(OWN), UploadId=begun["UploadId"])
    sender.put_object(**at(f"{INCOMING}/week-1/COMPLETE"), Body=b"")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3.env().items():
            patch.setenv(name, value)
        (found,) = [
            one for one in list_deliveries(open_store(f"s3://{INCOMING}")) if one.name == "week-1"
        ]
    assert found.complete
    assert found.known == ["train.jsonl", "videos/a.mp4"]


def test_a_senders_key_does_nothing_else(s3: S3Service, filled: Any) -> None:
    """Finding 6: it reads, lists and deletes nothing, not even its own; it writes nowhere else."""
    sender = client_of(s3, SENDER)
    assert sender.list_buckets()["Buckets"] == []
    for bucket in (BUCKET, INCOMING):
        for call in (
            *(sender.list_objects_v2, sender.list_objects, sender.list_multipart_uploads),
            *(sender.list_object_versions, sender.head_bucket, sender.delete_bucket),
            *(sender.get_bucket_policy, sender.get_bucket_acl, sender.get_bucket_location),
        ):
            assert refused(call, Bucket=bucket), (bucket, call)
        assert refused(sender.put_bucket_policy, Bucket=bucket, Policy="{}")
        assert refused(sender.put_bucket_acl, Bucket=bucket, ACL="public-read-write")
    assert refused(sender.create_bucket, Bucket="another")
    for place in (*PLACES, OWN):
        for call in (
            *(sender.get_object, sender.head_object, sender.delete_object),
            *(sender.get_object_tagging, sender.get_object_acl),
        ):
            assert refused(call, **at(place)), (place, call)
        assert refused(sender.put_object_acl, **at(place), ACL="public-read"), place
        copied = {"CopySource": place, **at(f"{INCOMING}/next/copy")}
        assert refused(sender.copy_object, **copied), place
        bucket, key = at(place).values()
        batch = sender.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": key}]})
        assert [one["Code"] for one in batch["Errors"]] == ["AccessDenied"]
    for place in PLACES:
        assert refused(sender.put_object, **at(place), Body=b"x"), place
        assert refused(sender.create_multipart_upload, **at(place)), place
    for key in ("../mrmodel/registry/a", "next/../../mrmodel/registry/a", "/../mrmodel/mlflow/a"):
        refused_or_harmless(sender, key)
    for place in (*PLACES, OWN):
        assert filled.get_object(**at(place))["Body"].read() == b"as it was"
    assert "Contents" not in filled.list_objects_v2(Bucket=INCOMING, Prefix="next/copy")


def refused_or_harmless(sender: Any, key: str) -> None:
    """A key that climbs out of the bucket: what the server makes of it is looked at afterwards."""
    try:
        sender.put_object(Bucket=INCOMING, Key=key, Body=b"climbed")
    except ClientError:
        return


def test_a_workers_key_ends_at_the_registry(s3: S3Service, filled: Any) -> None:
    """Finding 6: who runs stages neither moves the champion nor changes a registered model."""
    worker = client_of(s3, WORKER)
    for place in PLACES[:2]:
        worker.put_object(**at(place), Body=b"by a stage")
        assert worker.get_object(**at(place))["Body"].read() == b"by a stage"
        worker.delete_object(**at(place))
    for place in (*PLACES[2:], OWN):
        for call in (worker.get_object, worker.delete_object):
            assert refused(call, **at(place)), place
        assert refused(worker.put_object, **at(place), Body=b"x"), place
        assert refused(worker.copy_object, CopySource=place, **at(f"{BUCKET}/dvc/b")), place
    assert refused(worker.list_objects_v2, Bucket=INCOMING)


@pytest.mark.parametrize("key", ["", "sender"])
def test_no_key_is_no_access(s3: S3Service, key: str) -> None:
    """Neither without one nor with a wrong secret."""
    door = {"endpoint_url": s3.url, "region_name": "us-east-1"}
    client = boto3.client("s3", aws_access_key_id=key or "x", aws_secret_access_key="x", **door)
    assert refused(client.put_object, **at(OWN), Body=b"x")
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(urllib.request.Request(f"{s3.url}/{OWN}", b"x", method="PUT"))


def test_the_parts_of_the_server_answer_each_other_only(s3: S3Service, filled: Any) -> None:
    """Finding 11: the filer took `PUT /buckets/mrmodel/registry/...` from everybody."""
    for name, port in zip(INNER_PORTS, s3.server.inner_ports, strict=True):
        for method, path in (
            ("PUT", f"/buckets/{BUCKET}/registry/a"),
            ("POST", f"/buckets/{BUCKET}/registry/"),
            ("DELETE", f"/buckets/{BUCKET}/registry/a"),
            ("GET", f"/buckets/{BUCKET}/registry/a"),
            ("GET", "/dir/assign"),
            ("GET", "/dir/lookup?volumeId=1"),
            ("POST", "/1,01637037d6"),
            ("GET", "/1,01637037d6"),
        ):
            url = f"http://127.0.0.1:{port}{path}"
            assert answer_of(method, url) in (0, 400, 401, 404), (name, method, path)
    assert filled.get_object(**at(f"{BUCKET}/registry/a"))["Body"].read() == b"as it was"


def answer_of(method: str, url: str) -> int:
    """The status of an answer; 0: it hangs up, since that port speaks no HTTP."""
    body = b"x" if method in ("PUT", "POST") else None
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, method=method)) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


@pytest.mark.parametrize("inside", [True, False])
def test_its_own_shell_needs_the_keys(
    s3: S3Service, filled: Any, tmp_path: Path, inside: bool
) -> None:
    """Finding 11: it speaks gRPC, past HTTP and S3; beside security.toml it has the keys."""
    ports = dict(zip(INNER_PORTS, s3.server.inner_ports, strict=True))
    address = [
        f"127.0.0.1:{ports[f'{part}.port']}.{ports[f'{part}.port.grpc']}"
        for part in ("master", "filer")
    ]
    weed = str(Path(sys.executable).with_name("weed"))
    command = [weed, "shell", f"-master={address[0]}", f"-filer={address[1]}"]
    try:
        done = subprocess.run(
            command,
            cwd=s3.server.folder / "seaweedfs" if inside else tmp_path,
            input=f"fs.ls /buckets/{BUCKET}/registry\nexit\n",
            capture_output=True,
            text=True,
            timeout=5,
        )
        said = done.stdout
    except subprocess.TimeoutExpired as error:  # It goes on trying.
        said = (error.stdout or b"").decode()
    assert ("a" in said.split()) == inside
