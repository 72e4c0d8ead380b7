"""The network: what a replica computes. Pure PyTorch; knows neither Ray nor storage."""
