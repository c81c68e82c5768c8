"""Motion of a subject: its pose at a time, from the shot alone.

Rendering and ratings both use the poses, so ratings match the visible content.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from mrmodel.synthetic.script import ENTRANCE_S, Shot

# Longer side of the subject at the far and the near end of a motion to or from the camera.
FAR_SIZE, NEAR_SIZE = 0.2, 0.85


@dataclass(frozen=True, slots=True)
class Pose:
    """Position and appearance of the subject.

    Attributes:
        x, y: its centre, as fractions of the frame's width and height.
        size: its longer side, as a fraction of the frame's height.
        angle: degrees, counter-clockwise.
        opacity: 0..1.
    """

    x: float
    y: float
    size: float
    angle: float = 0.0
    opacity: float = 1.0


def pose_at(shot: Shot, time_s: float) -> Pose | None:
    """The pose in `shot` at `time_s`; None when the subject is absent.

    A subject that enters with a cut is present before the shot starts and one that exits with a cut
    remains after it ends, because cross-fades show those frames too.
    """
    if shot.topic is None:
        return None
    start, end = shot.shown_s
    presence = min(
        1.0 if shot.entrance == "cut" else (time_s - start) / ENTRANCE_S,
        1.0 if shot.exit == "cut" else (end - time_s) / ENTRANCE_S,
    )
    if presence <= 0:
        return None
    progress = min(max((time_s - start) / (end - start), 0.0), 1.0)
    pose = _act(shot, progress, time_s - start)
    return pose if presence >= 1 else _coming(shot, pose, presence, time_s)


def camera_at(shot: Shot, time_s: float) -> tuple[float, float]:
    """Camera offset from the middle of its drift, as fractions of the frame (x, y)."""
    length = shot.end_s - shot.start_s
    share = (time_s - shot.start_s) / length - 0.5
    share = min(max(share, -1.0), 1.0)
    return share * shot.drift[0], share * shot.drift[1]


def _act(shot: Shot, progress: float, elapsed_s: float) -> Pose:
    """The pose of the action at `progress` 0..1, `elapsed_s` seconds after the entrance."""
    x, y = shot.position
    size = shot.size
    match shot.topic.action if shot.topic else None:
        case "left":
            return Pose(0.95 - 0.9 * progress, y, size)
        case "right":
            return Pose(0.05 + 0.9 * progress, y, size)
        case "bounce":
            hop = abs(math.sin(math.pi * elapsed_s / (1.1 + 0.5 * shot.pace)))
            return Pose(x, 0.68 - 0.36 * hop, min(size, 0.6))
        case "spin":
            # The low bit of the pace decides the direction of rotation, so that both are common.
            sense = 1 if int(shot.pace * 1000) % 2 else -1
            return Pose(x, y, size, angle=sense * 360 * elapsed_s * (0.2 + 0.2 * shot.pace))
        case "near":
            return Pose(x, y, FAR_SIZE + (NEAR_SIZE - FAR_SIZE) * progress)
        case "far":
            return Pose(x, y, NEAR_SIZE + (FAR_SIZE - NEAR_SIZE) * progress)
        case "shake":
            swing = math.sin(2 * math.pi * (1.5 + 0.4 * shot.pace) * elapsed_s)
            return Pose(x + 0.045 * swing, y, size)
        case _:
            return Pose(x, y, size)


def _coming(shot: Shot, pose: Pose, presence: float, time_s: float) -> Pose:
    """A pose while the subject fades in or out, or rises from (sinks below) the lower edge."""
    start, end = shot.shown_s
    kind = shot.entrance if time_s - start < end - time_s else shot.exit
    if kind == "fade":
        return Pose(pose.x, pose.y, pose.size, pose.angle, presence)
    hidden = (1 - presence) * (1 - pose.y + pose.size / 2)
    return Pose(pose.x, pose.y + hidden, pose.size, pose.angle)
