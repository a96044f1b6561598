"""Rates of one GPU, in eight minutes, on a machine on which nothing can be downloaded."""
