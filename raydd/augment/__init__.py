"""Augmentations: differentiable siamese (:mod:`raydd.augment.dsa`), and DC's of its evaluation
(:mod:`raydd.augment.dc`).
"""
