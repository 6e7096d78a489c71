"""Strengths that a run learns against those of a grid."""
