"""The sample corpus, rendered from pictograms, and folders of people's own videos in its layout."""
