"""An S3 server: SeaweedFS, all of its parts in one process.

It shuts down cleanly within seconds, unlike `weed server`. Behind its S3 interface the parts answer
each other only, not other users of the machine.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from infra.kubernetes.components.s3 import security
from infra.local.process import Program

BUCKET = "mrmodel"
# Where senders may write, and nothing else.
INCOMING = "mrmodel-incoming"
# Who has an S3 key: for everything, for the data of stages, for writing deliveries.
REGISTRY, WORKER, SENDER = IDENTITIES = ("registry", "worker", "sender")
_IDENTITIES_FILE = Path(security.__file__).with_name("identities.json")
# Its parts use TCP; each has a fixed port by default. The admin part uses a second one, 10,000
# above its first, which some of its clients assume in any case.
INNER_PORTS = (
    "admin.port",
    "filer.port",
    "filer.port.grpc",
    "master.port",
    "master.port.grpc",
    "s3.port.grpc",
    "volume.port",
    "volume.port.grpc",
)
_ADMIN_OFFSET = 10_000
_OFF = (
    *("admin.ui=false", "master.telemetry=false", "s3.port.iceberg=0", "s3.port.lance=0"),
    # Who may do what is in the file of the identities, and only there.
    *("s3.iam=false", "webdav=false"),
)


@dataclass(frozen=True)
class SeaweedFS:
    """Settings of the server.

    Args:
        folder: its data (in ``seaweedfs``) and its log.
        port: of its S3 interface.
        inner_ports: one for each of `INNER_PORTS`.
        secrets: secret key of each of `IDENTITIES`; the access key is its name.
    """

    folder: Path
    port: int
    inner_ports: tuple[int, ...]
    secrets: Mapping[str, str]

    name: ClassVar[str] = "seaweedfs"

    @property
    def endpoint(self) -> str:
        """URL of the S3 interface."""
        return f"http://127.0.0.1:{self.port}"

    def environment(self, identity: str = REGISTRY) -> dict[str, str]:
        """Variables that a client needs to connect."""
        return {
            "MRMODEL_S3_ENDPOINT": self.endpoint,
            "AWS_ACCESS_KEY_ID": identity,
            "AWS_SECRET_ACCESS_KEY": self.secrets[identity],
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def prepare(self) -> None:
        """Draw the keys of its parts if it has none."""
        security.write(self.folder / self.name, Path())

    def program(self) -> Program:
        """The server as a process; the buckets are created at its first start."""
        inner = [
            f"-{name}={port}" for name, port in zip(INNER_PORTS, self.inner_ports, strict=True)
        ]
        fixed = ["-dir=.", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-disableHttp"]
        command = [str(Path(sys.executable).with_name("weed")), "-logtostderr", "mini", *fixed]
        command += [f"-{option}" for option in _OFF] + inner
        # Like AWS, this server must not create buckets implicitly.
        command += [f"-s3.port={self.port}", "-s3.autoCreateBucket=false"]
        command += [f"-bucket={BUCKET},{INCOMING}", f"-s3.config={_IDENTITIES_FILE}"]
        command += ["-s3.localSocket=s3.sock"]
        return Program(
            name=self.name,
            command=command,
            folder=self.folder,
            cwd=self.folder / self.name,
            ports=(self.port, *self.inner_ports, self.inner_ports[0] + _ADMIN_OFFSET),
            healthy=self.healthy,
            environment={f"S3_{name.upper()}_SECRET": self.secrets[name] for name in IDENTITIES},
        )

    def healthy(self) -> bool:
        """Whether an object can be written: the interface responds before storage is ready."""
        client = boto3.session.Session().client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=REGISTRY,
            aws_secret_access_key=self.secrets[REGISTRY],
            region_name="us-east-1",
            config=Config(connect_timeout=2, read_timeout=5, retries={"total_max_attempts": 1}),
        )
        try:
            client.head_bucket(Bucket=INCOMING)
            client.put_object(Bucket=BUCKET, Key="health", Body=b"")
        except (BotoCoreError, ClientError):
            return False
        return True
