"""Files out of search results: clips, reels, tables, chapters, edit lists, labelling tasks."""
