"""Batch panoptic segmentation of rasters and videos that are too large for one forward pass."""
