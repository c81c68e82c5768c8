"""``python security.py FOLDER [SEEN_AS]``: keys by which the parts of SeaweedFS know each other.

Writes ``security.toml`` with a certificate and its key, unless they are there. Without them anybody
who reaches the ports of its parts could read and write everything past the S3 keys.
"""

import datetime
import ipaddress
import secrets
import sys
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

_PARTS = ("master", "volume", "filer", "s3", "admin", "worker", "client")
_SIGNED = ("jwt.signing", "jwt.signing.read", "jwt.filer_signing", "jwt.filer_signing.read")


def write(folder: Path, seen_as: Path) -> None:
    """Write the files into a folder, which SeaweedFS finds at `seen_as`."""
    if (folder / "security.toml").exists():
        return
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "seaweedfs")])
    now = datetime.datetime.now(datetime.UTC)
    here = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        # A clock that is set back must not stop a server, and none runs for a century.
        .not_valid_before(now - datetime.timedelta(days=365))
        .not_valid_after(now + datetime.timedelta(days=36500))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(here, critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    lines = [f'[{table}]\nkey = "{secrets.token_hex(32)}"' for table in _SIGNED]
    lines.append(f'[grpc]\nca = "{seen_as}/cert.pem"')
    pair = f'cert = "{seen_as}/cert.pem"\nkey = "{seen_as}/key.pem"'
    lines += [f"[grpc.{part}]\n{pair}" for part in _PARTS]
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for file, content in (
        ("cert.pem", certificate.public_bytes(pem)),
        ("key.pem", key.private_bytes(pem, *private)),
        ("security.toml", "\n".join([*lines, ""]).encode()),
    ):
        draft = folder / "draft"
        draft.unlink(missing_ok=True)
        draft.touch(mode=0o600)
        draft.write_bytes(content)
        draft.replace(folder / file)


if __name__ == "__main__":
    write(Path(sys.argv[1]), Path(sys.argv[-1]))
