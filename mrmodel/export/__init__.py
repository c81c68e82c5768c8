"""Files out of search results: clips, reels, tables, chapters, edit lists, labelling tasks."""

# Kinds of files, without heavy imports: name -> what it is. They are written in this order.
FORMATS = {
    "mp4": "a clip of each hit",
    "reel": "all hits in one video",
    "json": "the hits, what the clips show, and frame rates",
    "csv": "a table of the hits",
    "vtt": "chapters of each video (WebVTT)",
    "otio": "a timeline of the hits (OpenTimelineIO)",
    "edl": "a cut list of the hits (CMX 3600)",
    "label-studio": "tasks with predictions, and a labelling setup",
}
# From such addresses Label Studio serves files of its own machine.
LOCAL_FILES = "/data/local-files/?d="
