"""Small encoders for tests, importable by worker processes; some of them misbehave."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from mrmodel.components import ENCODERS
from mrmodel.errors import WeightsError
from mrmodel.video.sampling import FrameSampling
from tests.video.fixtures import read_number


def is_first_time():
    """Whether no process of the test has asked yet; a file remembers."""
    mark = Path(os.environ["MRMODEL_TEST_MARK"])
    try:
        mark.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


@dataclass(frozen=True)
class Trap(FrameSampling):
    """Kills, or holds up, the process that asks for a frame of one clip."""

    at_clip: int = -1
    once: bool = False
    hangs: bool = False

    def target_s(self, clip, *args):
        if clip == self.at_clip:
            if self.hangs:
                time.sleep(600)
            if not self.once or is_first_time():
                os.kill(os.getpid(), signal.SIGSEGV)
        return super().target_s(clip, *args)


class Marking(FrameSampling):
    """Writes down, a byte each time, the clip of which a frame is looked for."""

    def target_s(self, clip, *args):
        with Path(os.environ["MRMODEL_TEST_MARK"]).open("ab", buffering=0) as file:
            file.write(bytes([clip]))
        return super().target_s(clip, *args)


class FrameNumbers:
    """The numbers burnt into the clip's two frames, and their share of ten thousand."""

    name, dim, modality = "test.numbers", 4, "video"
    sampling = FrameSampling(frames_per_clip=2, size=None)
    batch_clips = 1

    def encode_clips(self, frames):
        numbers = [[read_number(frame) for frame in clip] for clip in frames]
        values = np.array(numbers, dtype=np.float32)
        return np.concatenate([values, values / 1e4], axis=1)

    def fingerprint(self):
        return {"encoder": self.name, "dim": self.dim}


class Deadly(FrameNumbers):
    """Kills its process at a video whose second frame of a clip is number 37."""

    def encode_clips(self, frames):
        rows = super().encode_clips(frames)
        if (rows[:, 1] == 37).any():
            os.kill(os.getpid(), signal.SIGSEGV)
        return rows


class DeadlyOnce(FrameNumbers):
    """Kills its process the first time that it is used (a file remembers)."""

    def encode_clips(self, frames):
        if is_first_time():
            os.kill(os.getpid(), signal.SIGKILL)
        return super().encode_clips(frames)


class Hanging(FrameNumbers):
    """Never comes back from a video with frame 37."""

    def encode_clips(self, frames):
        rows = super().encode_clips(frames)
        if (rows[:, 1] == 37).any():
            time.sleep(600)
        return rows


class NotANumber(FrameNumbers):
    """Gives NaN for a video with frame 37."""

    def encode_clips(self, frames):
        rows = super().encode_clips(frames)
        return np.where(rows == 37, np.nan, rows)


class Confused(FrameNumbers):
    """Has a defect that shows at a video with frame 37."""

    def encode_clips(self, frames):
        rows = super().encode_clips(frames)
        if (rows == 37).any():
            raise IndexError("a defect")
        return rows


class Unlucky(FrameNumbers):
    """Fails at longer videos as long as a file is there, say for want of memory."""

    def encode_clips(self, frames):
        rows = super().encode_clips(frames)
        if len(rows) > 1 and Path(os.environ["MRMODEL_TEST_MARK"]).exists():
            raise MemoryError("not enough")
        return rows


class WithoutWeights(FrameNumbers):
    """Cannot work at all."""

    def encode_clips(self, frames):
        raise WeightsError("weights are missing")


class Together(FrameNumbers):
    """Wants four clips at a time, as encoders on a GPU do; remembers how many it was given."""

    sampling = FrameSampling(2, (160, 96))
    batch_clips = 4
    given: ClassVar[list[int]] = []

    def encode_clips(self, frames):
        self.given.append(len(frames))
        return super().encode_clips(frames)


class TogetherConfused(Together, Confused):
    """Both."""


class TogetherNotANumber(Together, NotANumber):
    """Both."""


class TogetherWithoutWeights(Together, WithoutWeights):
    """Both."""


class Careless(Together):
    """Forgets the last clip."""

    def encode_clips(self, frames):
        return super().encode_clips(frames)[:-1]


class Slow(Together):
    """Takes 0.3 s, and notes which clip the decoding was at by then."""

    sampling = Marking(2, (160, 96))
    seen: ClassVar[list[int]] = []

    def encode_clips(self, frames):
        time.sleep(0.3)
        self.seen.append(Path(os.environ["MRMODEL_TEST_MARK"]).read_bytes()[-1])
        return super().encode_clips(frames)


class DeadlyDecoding(Together):
    """Its frames kill the process that looks for them in the fourth clip of a video."""

    sampling = Trap(2, (160, 96), at_clip=3)


class DeadlyDecodingOnce(Together):
    """The same, the first time (a file remembers)."""

    sampling = Trap(2, (160, 96), at_clip=3, once=True)


class HangingDecoding(Together):
    """Looking for a frame of the fourth clip never ends."""

    sampling = Trap(2, (160, 96), at_clip=3, hangs=True)


class WordLengths:
    """A token a word: its length; row 0 is the number of words."""

    name, dim, modality = "test.words", 2, "text"

    def encode_texts(self, texts):
        result = []
        for text in texts:
            lengths = [len(word) for word in text.split()]
            result.append(np.array([[len(lengths), 0], *([n, 1] for n in lengths)], np.float32))
        return result

    def fingerprint(self):
        return {"encoder": self.name}


OTHERS = (FrameNumbers, WordLengths)


def register_all():
    for cls in (*FrameNumbers.__subclasses__(), *Together.__subclasses__(), *OTHERS):
        name = f"test.{cls.__name__}"
        if name not in ENCODERS:
            ENCODERS.register(name, f"{__name__}:{cls.__name__}")
