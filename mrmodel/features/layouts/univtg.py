"""A data set's folder of UniVTG's ``data``: files, or one HDF5 file a stream."""

from mrmodel.features.layouts.base import Layout, clip, clip_text, slowfast

LAYOUT = Layout(
    title="UniVTG, features of one data set",
    clip_len_s=None,
    streams=(
        slowfast("vid_slowfast", "h5py/vid_slowfast.hdf5"),
        clip("vid_clip", "h5py/vid_clip.hdf5"),
        clip_text("txt_clip", "h5py/txt_clip.hdf5"),
    ),
)
