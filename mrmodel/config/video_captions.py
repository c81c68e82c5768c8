"""The section `video_captions` of params.yaml: pre-training rows from captioned frames."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from mrmodel.config.base import NonNegative, Positive, Section


class VideoCaptionSettings(Section):
    """Pre-training rows from captioned frames (VideoLights, Algorithm 1).

    Attributes:
        captioner: ``phrases`` (the nearest phrases of the corpus's ``captions.jsonl``), ``blip`` or
            ``blip2`` (weights that the user brings); None: no rows are made.
        captioner_weights, scorer_weights: folders of the networks of ``blip`` and ``blip2`` in
            Hugging Face's format: one that writes captions, one that matches images and texts.
        interval_s: length of the intervals that a video is split into, each with one caption.
        min_last_s: a shorter last interval joins the one before it.
        frame: the captioned frame of an interval: in its middle, its first, or the one that is most
            similar to the others.
        score: a clip's score is the cosine of frame and caption, or the probability that they match
            by the network's matching head (``itm``).
        scale: the ratings of clips: ``grades`` (0 to 4, over all scores of a video, at least 1) or
            ``script`` (the published script's, 2.72 to 12.18).
        merge_similar: intervals side by side whose captions have at least this cosine become one;
            None: none do.
        include_eval_videos: also caption the videos of val and test, as the published rows do; no
            model that is pre-trained on them can be promoted.
    """

    captioner: Literal["phrases", "blip", "blip2"] | None
    captioner_weights: str | None
    scorer_weights: str | None
    interval_s: Positive
    min_last_s: NonNegative
    frame: Literal["middle", "first", "best"]
    score: Literal["cos", "itm"]
    scale: Literal["grades", "script"]
    merge_similar: Annotated[float, Field(ge=0.0, le=1.0)] | None
    include_eval_videos: bool

    @property
    def weights(self) -> list[str]:
        """The folders of weights that are given, the captioner's first."""
        folders = (self.captioner_weights, self.scorer_weights)
        return [folder for folder in folders if folder is not None]

    @model_validator(mode="after")
    def _networks_have_weights(self) -> VideoCaptionSettings:
        if self.captioner in ("blip", "blip2") and len(self.weights) < 2:
            raise ValueError(
                f"captioner {self.captioner!r} needs captioner_weights and scorer_weights, folders "
                "of weights that you bring"
            )
        if self.captioner == "phrases" and self.score == "itm":
            raise ValueError("score 'itm' is of a network's matching head; 'phrases' has none")
        return self
