"""Settings of the server."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from mrmodel.video.decoder import VideoLimits

HOST, PORT = "127.0.0.1", 8765
QUEUE = 16
# Environment variable of the token that clients must send.
TOKEN_VARIABLE = "MRMODEL_TOKEN"
# Shorter ones can be guessed.
SHORTEST_TOKEN = 16


@dataclass(frozen=True, slots=True)
class UploadLimits:
    """Limits of one upload, and of the processes that decode it.

    Attributes:
        n_bytes: of the file.
        memory_bytes: address space of a process that decodes it; see `child`.
        check_s: seconds of reading it before it is accepted.
        video: limits of the video; its `timeout_s` is that of encoding it.
    """

    n_bytes: int = 4 << 30
    memory_bytes: int = 8 << 30
    check_s: float = 60.0
    video: VideoLimits = field(default_factory=VideoLimits)


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """What a server serves, and how much at a time.

    Attributes:
        library: folder of the library; made if there is none. Uploads lie in it.
        model: folder, or ``zero-shot``; None: chosen as by ``mrmodel predict``.
        champion: registered model whose champion answers, in place of `model`.
        state: folder of the registry where its variables are not set.
        device: of a trained model.
        token: that clients must send; None: clients on this machine need none.
        workers: searches at a time, each with one thread.
        queue: searches that wait; one more is refused.
        timeout_s: of a search, waiting included.
        uploads: see there.
    """

    library: Path
    model: str | None = None
    champion: str | None = None
    state: Path = Path(".mrmodel")
    device: str = "auto"
    token: str | None = None
    workers: int = 1
    queue: int = QUEUE
    timeout_s: float = 30.0
    uploads: UploadLimits = field(default_factory=UploadLimits)
