"""From a trained model to answers: windows and clip scores for a sentence about a video."""
