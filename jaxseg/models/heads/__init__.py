"""Heads map (features, previous=None, *, train) to (class scores, further outputs).

`features` are the backbone's maps, finest first; `previous` are the scores of a cascade's earlier
stage. Scores [B, h, w, K] have the head's own resolution; only the Segmentor resizes them.
"""
