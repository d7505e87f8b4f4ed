"""What a run learns: the losses of a batch, how a model is judged, which figure is watched."""
