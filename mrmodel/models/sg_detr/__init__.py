"""SG-DETR (Saliency-Guided DETR): one file a part; `model.py` puts them together."""
