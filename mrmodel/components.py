"""Registries of models, encoders, datasets and protocols: one line per component.

An entry maps a name to its class as ``module:attribute``. The module is imported when the component
is first requested, so listing names is cheap and no layer imports another one.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

from mrmodel.errors import UnknownNameError


class ComponentRegistry:
    """Import paths of one kind of component by name."""

    def __init__(self, kind: str, places: dict[str, str]) -> None:
        self.kind = kind
        self._places = dict(places)

    def register(self, name: str, place: str) -> None:
        """Add a component of a third-party package: ``place`` is ``module:attribute``."""
        if name in self._places:
            raise ValueError(f"{self.kind} {name!r} is registered already: {self._places[name]}")
        self._places[name] = place

    def get(self, name: str) -> Any:
        """The component called `name`.

        Raises:
            UnknownNameError: no such name; the message lists the nearest ones.
        """
        if name not in self._places:
            raise UnknownNameError(self.kind, name, self._places)
        module, _, attribute = self._places[name].partition(":")
        return getattr(importlib.import_module(module), attribute)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __contains__(self, name: object) -> bool:
        return name in self._places


MODELS = ComponentRegistry(
    "model",
    {
        "moment_detr": "mrmodel.models.moment_detr:MomentDetr",
        "qd_detr": "mrmodel.models.qd_detr:QdDetr",
        "sa_detr": "mrmodel.models.sa_detr.model:SaDetr",
        "sg_detr": "mrmodel.models.sg_detr.model:SgDetr",
        "video_lights": "mrmodel.models.video_lights.model:VideoLights",
    },
)

# Their settings apart, so that a stage without a model reads params.yaml without PyTorch. A model
# that is not here brings them as its attribute `Settings`, as these do.
MODEL_SETTINGS = ComponentRegistry(
    "model",
    {
        "moment_detr": "mrmodel.models.settings:MomentDetrSettings",
        "qd_detr": "mrmodel.models.settings:QdDetrSettings",
        "sa_detr": "mrmodel.models.sa_detr.settings:SaDetrSettings",
        "sg_detr": "mrmodel.models.sg_detr.settings:SgDetrSettings",
        "video_lights": "mrmodel.models.video_lights.settings:VideoLightsSettings",
    },
)

# One entry per feature stream: an encoder computes the features of clips (or sentences).
ENCODERS = ComponentRegistry(
    "encoder",
    {
        "embedded.video": "mrmodel.encoders.builtin:AlignedVideoEncoder",
        "embedded.motion": "mrmodel.encoders.motion:MotionEncoder",
        "embedded.text": "mrmodel.encoders.builtin:AlignedTextEncoder",
        "clip_b32.video512": "mrmodel.encoders.clip:ClipVideoEncoder",
        "clip_b32.text512": "mrmodel.encoders.clip:ClipTextEncoder",
        "clip_b32.joint_text512": "mrmodel.encoders.clip:ClipJointTextEncoder",
        "slowfast.video2304": "mrmodel.encoders.slowfast:SlowFastVideoEncoder",
        "internvideo2_1b.video512": "mrmodel.encoders.internvideo2:InternVideo2VideoEncoder",
        "internvideo2_1b.text512": "mrmodel.encoders.internvideo2:InternVideo2TextEncoder",
        "blip2.video768": "mrmodel.encoders.blip2:Blip2VideoEncoder",
        "blip2.text768": "mrmodel.encoders.blip2:Blip2TextEncoder",
        "tiny.video": "mrmodel.encoders.tiny:TinyVideoEncoder",
        "tiny.text": "mrmodel.encoders.tiny:TinyTextEncoder",
    },
)

PROTOCOLS = ComponentRegistry(
    "evaluation protocol",
    {
        "qvhighlights": "mrmodel.evaluate.qvhighlights:QVHighlights",
        "charades": "mrmodel.evaluate.charades:Charades",
        "tacos": "mrmodel.evaluate.charades:Tacos",
        "tvsum": "mrmodel.evaluate.highlight_sets:TVSum",
        "youtube_hl": "mrmodel.evaluate.highlight_sets:YouTubeHighlights",
    },
)

# Public data sets, as `mrmodel data convert` reads them.
DATASETS = ComponentRegistry(
    "data set",
    {
        "qvhighlights": "mrmodel.data.datasets.qvhighlights:QVHighlights",
        "charades": "mrmodel.data.datasets.charades:CharadesSta",
        "tacos": "mrmodel.data.datasets.tacos:Tacos",
        "tvsum": "mrmodel.data.datasets.tvsum:TVSum",
        "youtube_hl": "mrmodel.data.datasets.youtube_hl:YouTubeHighlights",
    },
)

# Published feature archives, as `mrmodel features import` reads them.
LAYOUTS = ComponentRegistry(
    "feature layout",
    {
        "moment_detr": "mrmodel.features.importers.layouts:MOMENT_DETR",
        "moment_detr_audio": "mrmodel.features.importers.layouts:MOMENT_DETR_AUDIO",
        "video_lights": "mrmodel.features.importers.layouts:VIDEO_LIGHTS",
        "internvideo2_qvhighlights": "mrmodel.features.importers.layouts:INTERNVIDEO2_QVHIGHLIGHTS",
        "internvideo2_charades": "mrmodel.features.importers.layouts:INTERNVIDEO2_CHARADES",
        "charades_slowfast_clip": "mrmodel.features.importers.layouts:CHARADES_SLOWFAST_CLIP",
        "charades_video_lights": "mrmodel.features.importers.layouts:CHARADES_VIDEO_LIGHTS",
        "charades_vgg": "mrmodel.features.importers.layouts:CHARADES_VGG",
        "tacos": "mrmodel.features.importers.layouts:TACOS",
        "tvsum_i3d": "mrmodel.features.importers.layouts:TVSUM_I3D",
        "tvsum_slowfast_clip": "mrmodel.features.importers.layouts:TVSUM_SLOWFAST_CLIP",
        "youtube_hl_slowfast_clip": "mrmodel.features.importers.layouts:YOUTUBE_HL_SLOWFAST_CLIP",
        "youtube_hl_i3d": "mrmodel.features.importers.layouts:YOUTUBE_HL_I3D",
        "sg_detr": "mrmodel.features.importers.layouts:SG_DETR",
        "lighthouse": "mrmodel.features.importers.layouts:LIGHTHOUSE",
        "univtg": "mrmodel.features.importers.layouts:UNIVTG",
    },
)
