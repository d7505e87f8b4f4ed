"""Any2Point: a frozen transformer of another modality reads point clouds through a small trained adapter."""
