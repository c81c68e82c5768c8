"""Decodes video files to frames on a clip grid."""
